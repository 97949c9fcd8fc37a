-- Every record ends as kept, not chosen or rejected, once per student; what is kept is the selected set.
-- @asset: selected_set
-- @remedy: run the student's side again: srt run selected_set
SELECT a.student, a.records, a.kept, a.not_chosen, a.rejected, a.unaccounted, count(s.sample_id) AS selected
FROM {{ ref('row_accounting') }} AS a
LEFT JOIN {{ source('lake', 'selected_set') }} AS s ON s.student = a.student
GROUP BY ALL
HAVING a.unaccounted <> 0
    OR a.records <> a.kept + a.not_chosen + a.rejected
    OR count(s.sample_id) <> a.kept
    OR count(DISTINCT s.sample_id) <> a.kept
