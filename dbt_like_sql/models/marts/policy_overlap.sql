-- How far two policies agree for a student: what both keep, and with the same candidate.
-- @grain: student, policy_a, policy_b
-- @column kept_a: records that policy a keeps
-- @column kept_b: records that policy b keeps
-- @column kept_both: records that both keep
-- @column same_candidate: of these, with the same candidate
-- @column jaccard: kept with the same candidate by both, of all that either keeps
SELECT
    a.student,
    a.policy AS policy_a,
    b.policy AS policy_b,
    count(*) FILTER (a.kept) AS kept_a,
    count(*) FILTER (b.kept) AS kept_b,
    count(*) FILTER (a.kept AND b.kept) AS kept_both,
    count(*) FILTER (a.kept AND b.kept AND a.chosen = b.chosen) AS same_candidate,
    count(*) FILTER (a.kept AND b.kept AND a.chosen = b.chosen) / nullif(count(*) FILTER (a.kept OR b.kept), 0) AS jaccard
FROM {{ source('lake', 'policy_decisions') }} AS a
JOIN {{ source('lake', 'policy_decisions') }} AS b
    ON b.student = a.student AND b.sample_id = a.sample_id AND b.policy > a.policy
GROUP BY a.student, a.policy, b.policy
ORDER BY a.student, a.policy, b.policy
