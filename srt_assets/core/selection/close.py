"""Finds verdicts whose margin is smaller than the error of low precision. What happens to them is in `settle.py`.

The cut of a top-k is not checked, because ranks decide it, not a margin.
"""

from srt_assets.core.scoring.precision import MEASURES

# The error that applies to each comparison's margin. Lengths and coins are exact in any precision.
_ERROR_OF = {"ifd": "e.log_ifd", "r_ifd": "e.log_r_ifd", "perplexity": "e.loss_response_given_prompt"}


def close_sql(verdicts: str, low: str, ratios: str) -> str:
    """SQL for the samples with a verdict that the error of their low-precision scores could change.

    `verdicts`, `low`, `ratios`: SQL with rows of `decisions`, of the scores in low precision, of `candidate_scores`.
    The relation `asked_policies` has the policies to check (columns of `policies`), `errors` one row per precision
    (`dtype`).
    """
    compared = [
        f"(compare_{n} = '{what}' AND compared_{n} IN ('wins', 'not_better') AND abs(margin_{n}) <= {error})"
        for n in (1, 2)
        for what, error in _ERROR_OF.items()
    ]
    ifd, r_ifd = "v.log_ifd - log_ifd_below", "v.log_r_ifd - log_r_ifd_below"
    return f"""
    WITH e AS (
        SELECT sample_id, {", ".join(f"max({m}) AS {m}" for m in MEASURES)}
        FROM ({low}) JOIN errors USING (dtype) GROUP BY sample_id
    )
    SELECT sample_id
    FROM ({verdicts}) AS v JOIN e USING (sample_id) JOIN asked_policies USING (policy)
    WHERE {" OR ".join(compared)}
        -- The rule checks the limits last, that of IFD first, and only for a winner that could be kept.
        OR (NOT response_reflected_only OR branch IN ('instruction+response', 'response')) AND (
            abs({ifd}) <= e.log_ifd
            OR coalesce({ifd} < 0, true) AND abs({r_ifd}) <= e.log_r_ifd
        )
    UNION
    -- A policy that filters before it compares checks the limits of every candidate.
    SELECT sample_id
    FROM ({ratios}) AS c JOIN e USING (sample_id), asked_policies
    WHERE filter_before_compare
        AND (abs(c.log_ifd - log_ifd_below) <= e.log_ifd OR abs(c.log_r_ifd - log_r_ifd_below) <= e.log_r_ifd)
    """
