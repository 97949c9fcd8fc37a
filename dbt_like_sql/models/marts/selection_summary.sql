-- Where the records of each student went, under every policy: branches of the tree, outcomes and reasons (Fig. 7).
-- @grain: student, policy, branch, outcome, reason
-- @column active: the policy the selected set was made with
-- @column branch: what won: instruction+response, instruction, response or neither
-- @column samples: records that ended here
-- @column share: of all records of this student and policy
WITH ends AS (
    SELECT
        verdicts.student,
        verdicts.policy,
        policies.active,
        verdicts.branch,
        verdicts.outcome,
        verdicts.reason,
        count(*) AS samples
    FROM {{ source('lake', 'policy_decisions') }} AS verdicts
    JOIN {{ source('lake', 'policies') }} AS policies
        ON policies.student = verdicts.student AND policies.policy = verdicts.policy
    GROUP BY ALL
)

SELECT *, samples / sum(samples) OVER (PARTITION BY student, policy) AS share
FROM ends
ORDER BY student, active DESC, policy, samples DESC, branch, reason
