-- A rewrite that is near-identical to the record teaches nothing: here, more than a tenth are. Near-identical: the same but
-- for punctuation and letter case, or with at least 95 % of the distinct words in common, instruction and response each.
-- @asset: reflected_responses
-- @severity: warn
-- @remedy: look at the examples with srt explain; a larger teacher or a higher teacher.temperature helps
WITH texts AS (
    SELECT
        rewrites.candidate,
        rewrites.sample_id,
        -- \p{L} and \p{N}: letters and digits of every script, which \w does not know.
        regexp_replace(lower(rewrites.instruction || ' ' || rewrites.response), '[^\p{L}\p{N}]', '', 'g') AS bare_new,
        regexp_replace(lower(records.instruction || ' ' || records.response), '[^\p{L}\p{N}]', '', 'g') AS bare_old,
        list_distinct(regexp_extract_all(lower(rewrites.instruction), '[\p{L}\p{N}]+')) AS asked_new,
        list_distinct(regexp_extract_all(lower(records.instruction), '[\p{L}\p{N}]+')) AS asked_old,
        list_distinct(regexp_extract_all(lower(rewrites.response), '[\p{L}\p{N}]+')) AS answered_new,
        list_distinct(regexp_extract_all(lower(records.response), '[\p{L}\p{N}]+')) AS answered_old
    FROM {{ source('lake', 'candidates') }} AS rewrites
    JOIN {{ source('lake', 'raw_records') }} AS records ON records.sample_id = rewrites.sample_id
    WHERE rewrites.candidate <> 'original' AND rewrites.status = 'ok'
),

compared AS (
    SELECT
        candidate,
        sample_id,
        (bare_new = bare_old AND bare_old <> '')
        OR (
            len(answered_old) > 0
            AND len(list_intersect(asked_new, asked_old)) >= 0.95 * greatest(len(asked_new), len(asked_old))
            AND len(list_intersect(answered_new, answered_old)) >= 0.95 * greatest(len(answered_new), len(answered_old))
        ) AS same
    FROM texts
)

SELECT
    candidate,
    count(*) FILTER (same) AS same,
    count(*) AS rewrites,
    list_slice(list_sort(list(sample_id) FILTER (same)), 1, 3) AS examples
FROM compared
GROUP BY candidate
HAVING count(*) FILTER (same) > count(*) / 10
