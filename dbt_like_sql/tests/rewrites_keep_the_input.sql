-- A reflected instruction has no input of its own, so it must carry the record's: here, more than a fifth of the records
-- with an input of five words or more have a rewrite in which not one in four of those words occurs.
-- @asset: reflected_responses
-- @severity: warn
-- @remedy: look at the examples with srt explain; a larger teacher helps
WITH words AS (
    SELECT
        records.sample_id,
        list_distinct(regexp_extract_all(lower(records.input), '[\p{L}\p{N}]+')) AS given,
        list_distinct(regexp_extract_all(lower(rewrites.instruction), '[\p{L}\p{N}]+')) AS carried
    FROM {{ source('lake', 'raw_records') }} AS records
    JOIN {{ source('lake', 'candidates') }} AS rewrites
        ON rewrites.sample_id = records.sample_id AND rewrites.candidate = 'reflected_instruction' AND rewrites.status = 'ok'
    WHERE records.input <> ''
),

judged AS (
    SELECT sample_id, len(list_intersect(given, carried)) < len(given) / 4 AS dropped
    FROM words
    WHERE len(given) >= 5
)

SELECT
    count(*) FILTER (dropped) AS dropped,
    count(*) AS with_input,
    list_slice(list_sort(list(sample_id) FILTER (dropped)), 1, 3) AS examples
FROM judged
HAVING count(*) FILTER (dropped) > count(*) / 5
