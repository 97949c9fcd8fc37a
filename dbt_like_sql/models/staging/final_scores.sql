-- The scores that count: each row of student_scores, in its place the one in fp32 where selection has settled it.
-- A settled row counts for a score in low precision of the same texts, by the same student, made the same way.
-- @grain: student, sample_id, candidate
WITH settled AS (
    SELECT settled.*
    FROM {{ source('lake', 'settled_scores') }} AS settled
    JOIN {{ source('lake', 'student_scores') }} AS scores
        ON scores.student = settled.student
        AND scores.sample_id = settled.sample_id
        AND scores.candidate = settled.candidate
        AND scores.content_key = settled.content_key
        AND scores.student_fingerprint = settled.student_fingerprint
        AND scores.scoring_version = settled.scoring_version
        AND scores.template = settled.template
        AND scores.protocol = settled.protocol
        AND scores.max_length = settled.max_length
    WHERE scores.dtype <> 'float32'
)
SELECT scores.*
FROM {{ source('lake', 'student_scores') }} AS scores
ANTI JOIN settled
    ON settled.student = scores.student
    AND settled.sample_id = scores.sample_id
    AND settled.candidate = scores.candidate
UNION ALL BY NAME
SELECT * FROM settled
