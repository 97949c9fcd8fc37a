-- The selected set has at least two rows: one to learn from and one to measure with.
-- @asset: selected_set
-- @remedy: add data, or choose another selection.policy or a larger selection.top_k; selection_summary shows where the rows went
SELECT policies.student, policies.policy, count(kept.sample_id) AS rows_kept
FROM {{ source('lake', 'policies') }} AS policies
LEFT JOIN {{ source('lake', 'selected_set') }} AS kept ON kept.student = policies.student
WHERE policies.active
GROUP BY policies.student, policies.policy
HAVING count(kept.sample_id) < 2
