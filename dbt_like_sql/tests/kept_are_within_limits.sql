-- Whatever is kept has a finite ratio wherever its policy sets a limit, and is below it.
-- @asset: selected_set
-- @severity: error
-- @remedy: report it: the rule let something through that its policy forbids
SELECT decisions.student, decisions.sample_id, decisions.log_ifd, decisions.log_r_ifd
FROM {{ ref('decisions') }} AS decisions
JOIN {{ source('lake', 'policies') }} AS policies
    ON policies.student = decisions.student AND policies.policy = decisions.policy
WHERE decisions.kept AND NOT (
    coalesce(policies.log_ifd_below IS NULL OR (isfinite(decisions.log_ifd) AND decisions.log_ifd < policies.log_ifd_below), false)
    AND coalesce(
        policies.log_r_ifd_below IS NULL OR (isfinite(decisions.log_r_ifd) AND decisions.log_r_ifd < policies.log_r_ifd_below), false
    )
)
