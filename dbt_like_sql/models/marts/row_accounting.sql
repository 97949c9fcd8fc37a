-- Every input row ends in exactly one of kept, not chosen, or rejected with a reason: the sums, per student.
-- @grain: student
-- @column input_rows: rows read from the files
-- @column raw_rejects: of these, no usable record
-- @column records: of these, records
-- @column kept: records in the selected set
-- @column not_chosen: records whose winner was not kept
-- @column rejected: records whose winner is not ok or has no finite score
-- @column unaccounted: records without a verdict; anything but 0 is an error
-- @column kept_share: kept / records
WITH totals AS (
    SELECT
        (SELECT count(*) FROM {{ source('lake', 'raw_records') }}) AS records,
        (SELECT count(*) FROM {{ source('lake', 'raw_rejects') }}) AS raw_rejects
)

SELECT
    student,
    any_value(records + raw_rejects) AS input_rows,
    any_value(raw_rejects) AS raw_rejects,
    any_value(records) AS records,
    count(*) FILTER (outcome = 'kept') AS kept,
    count(*) FILTER (outcome = 'not_chosen') AS not_chosen,
    count(*) FILTER (outcome = 'rejected') AS rejected,
    any_value(records) - count(*) AS unaccounted,
    count(*) FILTER (outcome = 'kept') / nullif(any_value(records), 0) AS kept_share
FROM {{ ref('decisions') }}
CROSS JOIN totals
GROUP BY student
ORDER BY student
