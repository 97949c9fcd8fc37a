-- Every record has an id of its own.
-- @asset: raw_dataset
-- @remedy: report it: duplicates are rejected when they are read
SELECT sample_id, count(*) AS times
FROM {{ source('lake', 'raw_records') }}
GROUP BY sample_id
HAVING count(*) > 1
