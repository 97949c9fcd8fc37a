-- Scores that are constant, mostly missing, or mostly above 1 decide nothing. Usual causes: a template the student does
-- not know, a base model where a chat template is set (or the other way round), weights that did not load.
-- @asset: student_scores
-- @severity: warn
-- @remedy: try another student.template (none for a base model that knows no chat), and score with the base model
SELECT
    student,
    candidate,
    CASE
        WHEN count(log_ifd) < count(*) / 2 THEN 'most candidates have no score'
        WHEN count(log_ifd) > 2 AND (min(log_ifd) = max(log_ifd) OR min(log_r_ifd) = max(log_r_ifd)) THEN 'all scores are equal'
        ELSE 'IFD is above 1 for most: check template and base model'
    END AS problem,
    count(*) AS candidates,
    count(log_ifd) AS scored,
    median(ifd_ppl) AS ifd_median
FROM {{ ref('candidate_scores') }}
WHERE status <> 'candidate_not_ok'
GROUP BY student, candidate
HAVING count(log_ifd) < count(*) / 2
    OR (count(log_ifd) > 2 AND (min(log_ifd) = max(log_ifd) OR min(log_r_ifd) = max(log_r_ifd)))
    OR count(*) FILTER (log_ifd > 0) > count(log_ifd) / 2
