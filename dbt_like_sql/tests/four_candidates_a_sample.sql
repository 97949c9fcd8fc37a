-- Every record has exactly four candidates, and every candidate belongs to a record.
-- @asset: reflected_responses
-- @remedy: run the teacher side again: srt run reflected_responses
SELECT sample_id, count(c.candidate) AS candidates
FROM {{ source('lake', 'raw_records') }} AS r
FULL JOIN {{ source('lake', 'candidates') }} AS c USING (sample_id)
GROUP BY sample_id
HAVING count(c.candidate) <> 4 OR count(DISTINCT c.candidate) <> 4 OR count(r.dataset) = 0
