-- A rewrite that differs from the record by punctuation and letter case only teaches nothing: here, more than a tenth do.
-- @asset: reflected_responses
-- @severity: warn
-- @remedy: look at the examples with srt explain; a larger teacher or a higher teacher.temperature helps
WITH bare AS (
    SELECT
        rewrites.candidate,
        rewrites.sample_id,
        regexp_replace(lower(rewrites.instruction || rewrites.response), '\W', '', 'g')
            = regexp_replace(lower(records.instruction || records.response), '\W', '', 'g') AS same
    FROM {{ source('lake', 'candidates') }} AS rewrites
    JOIN {{ source('lake', 'raw_records') }} AS records ON records.sample_id = rewrites.sample_id
    WHERE rewrites.candidate <> 'original' AND rewrites.status = 'ok'
)

SELECT
    candidate,
    count(*) FILTER (same) AS same,
    count(*) AS rewrites,
    list_slice(list_sort(list(sample_id) FILTER (same)), 1, 3) AS examples
FROM bare
GROUP BY candidate
HAVING count(*) FILTER (same) > count(*) / 10
