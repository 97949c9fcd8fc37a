-- The paper's runs kept 66 to 71 % of the records; a share outside 50 to 85 % deserves a look at teacher and template.
-- @asset: selected_set
-- @severity: warn
-- @remedy: look at selection_summary and score_summary: which branch and which limit lost the records
SELECT student, policy, count(*) FILTER (kept) / count(*) AS kept_share, count(*) AS records
FROM {{ ref('decisions') }}
WHERE policy = 'selective'
GROUP BY student, policy
HAVING count(*) FILTER (kept) / count(*) NOT BETWEEN 0.5 AND 0.85
