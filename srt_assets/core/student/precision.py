"""What low precision could decide: measures its error on some records, settles every close call in fp32.

A ratio computed in bf16 is off by about a hundredth; that matters only where a comparison of the default policy is
closer than that. The comparisons here are that policy's, taken apart into margins; the rule itself is SQL elsewhere.
"""

from collections.abc import Callable

from srt_assets.core.student.store import Store

MEASURED_RECORDS = 64

# Margins in log space: reflected instruction against original, then the branch's response against its rival, then the
# winner's two ratios against 1. A missing score loses, like everywhere.
_MARGINS = """
WITH ratios AS (
    SELECT sample_id, candidate, d.dtype,
        sum_nll_response_given_prompt / n_tokens_response_given_prompt
            - sum_nll_response / n_tokens_response AS ifd,
        sum_nll_instruction_given_response / n_tokens_instruction_given_response
            - sum_nll_instruction / n_tokens_instruction AS r_ifd
    FROM wanted w LEFT JOIN {scores} d ON w.ok AND w.content_key = d.content_key
), wide AS (
    SELECT sample_id, bool_or(dtype <> 'float32') AS low, {columns}
    FROM ratios GROUP BY sample_id
), first AS (
    SELECT *, coalesce(ifd_reflected_instruction - ifd_original, '-inf'::DOUBLE) AS m1 FROM wide
), second AS (
    SELECT *, coalesce(CASE WHEN m1 > 0 THEN r_ifd_reflected_both - r_ifd_reflected_instruction
        ELSE r_ifd_reflected_response - r_ifd_original END, 'inf'::DOUBLE) AS m2 FROM first
)
SELECT sample_id, coalesce(low, false) AS low, m1, m2,
    CASE WHEN m1 > 0 AND m2 < 0 THEN ifd_reflected_both WHEN m1 > 0 THEN ifd_reflected_instruction
        WHEN m2 < 0 THEN ifd_reflected_response ELSE ifd_original END AS m3,
    CASE WHEN m1 > 0 AND m2 < 0 THEN r_ifd_reflected_both WHEN m1 > 0 THEN r_ifd_reflected_instruction
        WHEN m2 < 0 THEN r_ifd_reflected_response ELSE r_ifd_original END AS m4
FROM second
"""
_CANDIDATES = ("original", "reflected_instruction", "reflected_response", "reflected_both")
_COLUMNS = ", ".join(
    f"max({ratio}) FILTER (candidate = '{candidate}') AS {ratio}_{candidate}"
    for ratio in ("ifd", "r_ifd")
    for candidate in _CANDIDATES
)


def margins(scores: str) -> str:
    """SQL: one row a sample with the margins m1..m4 of its decision, from a relation of scores by content key."""
    return _MARGINS.format(scores=scores, columns=_COLUMNS)


def low_precision_samples(store: Store) -> int:
    """Samples with a score that was not computed in fp32."""
    row = store.con.execute(f"SELECT count(*) FROM ({margins('done')}) WHERE low").fetchone()
    return row[0] if row else 0


def settle(store: Store, low: int, rescore: Callable[[list[str]], None]) -> dict[str, int | float | str]:
    """Measure the error of low precision, re-score close calls in fp32, and count the decisions that turned.

    `rescore(samples)` puts fp32 scores of these samples into the store. The error is the largest change of a margin
    among the measured records; a decision is close if one of its margins is not larger.
    """
    con = store.con
    con.execute("CREATE OR REPLACE TABLE before AS FROM done")
    measured = [
        key
        for (key,) in con.execute(
            f"SELECT sample_id FROM ({margins('done')}) WHERE low ORDER BY hash(sample_id) LIMIT {MEASURED_RECORDS}"
        ).fetchall()
    ]
    rescore(measured)
    # Only where both took the same branch do the margins of the later comparisons compare like with like.
    row = con.execute(
        f"SELECT max(greatest(abs(a.m1 - b.m1), CASE WHEN (a.m1 > 0) = (b.m1 > 0) THEN abs(a.m2 - b.m2) END, "
        f"CASE WHEN (a.m1 > 0) = (b.m1 > 0) AND (a.m2 < 0) = (b.m2 < 0) "
        f"THEN greatest(abs(a.m3 - b.m3), abs(a.m4 - b.m4)) END)) "
        f"FROM ({margins('before')}) a JOIN ({margins('done')}) b USING (sample_id) "
        "WHERE a.low AND NOT b.low AND isfinite(a.m1) AND isfinite(b.m1) AND isfinite(a.m2) AND isfinite(b.m2)"
    ).fetchone()
    error = row[0] if row and row[0] is not None else 0.0
    close = [
        key
        for (key,) in con.execute(
            f"SELECT sample_id FROM ({margins('done')}) WHERE low AND "
            "(abs(m1) <= $e OR abs(m2) <= $e OR abs(m3) <= $e OR abs(m4) <= $e) ORDER BY 1",
            {"e": error},
        ).fetchall()
    ]
    rescore(close)
    outcome = "({0}.m1 > 0, {0}.m2 < 0, coalesce({0}.m3 < 0 AND {0}.m4 < 0, false))"
    row = con.execute(
        f"SELECT count(*) FROM ({margins('before')}) a JOIN ({margins('done')}) b USING (sample_id) "
        f"WHERE {outcome.format('a')} <> {outcome.format('b')}"
    ).fetchone()
    con.execute("DROP TABLE before")
    return {
        "low_precision_records": low,
        "low_precision_error": error,
        "rescored_in_fp32": len(set(measured) | set(close)),
        "decisions_flipped": row[0] if row else 0,
    }
