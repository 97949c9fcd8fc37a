-- The paper's runs kept 66 to 71 % of the records; a share outside 50 to 85 % deserves a look at teacher and template.
-- Counted before top-k, and not at all where keep_unreflected keeps what the paper did not.
-- @asset: selected_set
-- @severity: warn
-- @remedy: look at selection_summary and score_summary: which branch and which limit lost the records
SELECT
    decisions.student,
    decisions.policy,
    count(*) FILTER (decisions.reason IN ('kept', 'below_top_k')) / count(*) AS kept_share,
    count(*) AS records
FROM {{ ref('decisions') }} AS decisions
JOIN {{ source('lake', 'policies') }} AS policies
    ON policies.student = decisions.student AND policies.policy = decisions.policy
WHERE decisions.policy = 'selective' AND policies.response_reflected_only
GROUP BY decisions.student, decisions.policy
HAVING count(*) FILTER (decisions.reason IN ('kept', 'below_top_k')) / count(*) NOT BETWEEN 0.5 AND 0.85
