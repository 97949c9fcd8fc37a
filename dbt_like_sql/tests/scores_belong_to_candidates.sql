-- Every score was made of the candidate's present texts.
-- @asset: student_scores
-- @severity: warn
-- @remedy: score again: srt run student_scores
SELECT scores.student, scores.sample_id, scores.candidate, scores.content_key AS scored, candidates.content_key AS now
FROM {{ source('lake', 'student_scores') }} AS scores
LEFT JOIN {{ source('lake', 'candidates') }} AS candidates
    ON candidates.sample_id = scores.sample_id AND candidates.candidate = scores.candidate
WHERE scores.status_response <> 'candidate_not_ok' AND scores.content_key IS DISTINCT FROM candidates.content_key
