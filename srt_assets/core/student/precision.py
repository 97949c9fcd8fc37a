"""What low precision could decide: measures its error on some records, settles every close call in fp32.

A ratio computed in bf16 is off by about a hundredth; that matters only where a comparison or a limit of the active
policy is closer than that, or where the loss was no number at all. What is compared with what is asked of the rule
itself, `decisions.sql`: its verdicts carry the margins. Only the cut of a top-k, where ranks decide and not a margin,
is not settled.
"""

from collections.abc import Callable

import pyarrow as pa

from srt_assets.core.sql import models
from srt_assets.core.student.store import Store
from srt_assets.core.tables import PASSES, TABLES

MEASURED_RECORDS = 64
# Comparisons whose margin the student's losses make; lengths and coins are exact in any precision.
_OF_LOSSES = "('ifd', 'r_ifd', 'perplexity')"
_SCORED = "wanted w JOIN done d ON w.ok AND w.content_key = d.content_key"
# Samples with a score that was not computed in fp32.
_LOW = f"SELECT sample_id FROM {_SCORED} GROUP BY sample_id HAVING bool_or(dtype <> 'float32')"
# Those with a loss that was no number in low precision: it may well be one in fp32.
_NO_NUMBER = " OR ".join(f"status_{name} = 'not_finite'" for name in PASSES)
_OVERFLOWED = f"SELECT sample_id FROM {_SCORED} WHERE dtype <> 'float32' AND ({_NO_NUMBER})"


def settle(store: Store, policies: list[dict], rescore: Callable[[list[str]], None]) -> dict[str, int | float | str]:
    """Measure the error of low precision, re-score close calls in fp32, and count the decisions that turned.

    `policies`: rows of the table of that name; the active one counts. `rescore(samples)` puts fp32 scores of these
    samples into the store. The error is the largest change of a margin among the measured records; a decision is
    close if one of its margins is not larger.
    """
    con = store.con
    (low,) = con.execute(f"SELECT count(*) FROM ({_LOW})").fetchall()[0]
    if not low:
        return {}
    active = [policy for policy in policies if policy["active"]]
    con.register("policy", pa.Table.from_pylist(active, schema=TABLES["policies"].arrow_schema))
    con.execute("CREATE OR REPLACE TABLE before AS FROM done")
    measured = _samples(store, f"FROM ({_LOW}) ORDER BY hash(sample_id) LIMIT {MEASURED_RECORDS}")
    rescore(measured)
    con.execute("CREATE OR REPLACE TABLE verdict_before AS " + _verdicts(store, "before"))
    con.execute("CREATE OR REPLACE TABLE measured AS SELECT unnest(?::VARCHAR[]) AS sample_id", [measured])
    # Margins compare like with like only where the comparison before came out the same.
    (error,) = con.execute(
        "SELECT coalesce(max(greatest(abs(a.m1 - b.m1), CASE WHEN a.won_1 = b.won_1 THEN abs(a.m2 - b.m2) END, "
        "CASE WHEN a.chosen = b.chosen THEN greatest(abs(a.m3 - b.m3), abs(a.m4 - b.m4)) END)), 0.0) "
        f"FROM verdict_before a JOIN ({_verdicts(store, 'done')}) b USING (sample_id) "
        "SEMI JOIN measured USING (sample_id)"
    ).fetchall()[0]
    near = " OR ".join(f"abs({m}) <= {error!r}" for m in ("m1", "m2", "m3", "m4"))
    close = _samples(
        store,
        f"SELECT sample_id FROM ({_LOW}) SEMI JOIN (SELECT sample_id FROM ({_verdicts(store, 'done')}) "
        f"WHERE {near} UNION {_near_a_limit(store, error)} UNION {_OVERFLOWED}) USING (sample_id) ORDER BY 1",
    )
    rescore(close)
    (flipped,) = con.execute(
        f"SELECT count(*) FROM verdict_before a JOIN ({_verdicts(store, 'done')}) b USING (sample_id) "
        "WHERE (a.chosen, a.kept) <> (b.chosen, b.kept)"
    ).fetchall()[0]
    return {
        "low_precision_records": low,
        "low_precision_error": error,
        "rescored_in_fp32": len(set(measured) | set(close)),
        "decisions_flipped": flipped,
    }


def _samples(store: Store, sql: str) -> list[str]:
    return [key for (key,) in store.con.execute(sql).fetchall()]


def _verdicts(store: Store, scores: str) -> str:
    """One row a sample: what the rule chose, and how close it was: m1, m2 of the comparisons, m3, m4 to the limits."""
    return f"""
    SELECT sample_id, chosen, kept, compared_1 IN ('wins', 'wins_over_filtered_out') AS won_1,
        CASE WHEN compare_1 IN {_OF_LOSSES} AND compared_1 IN ('wins', 'not_better') THEN margin_1 END AS m1,
        CASE WHEN compare_2 IN {_OF_LOSSES} AND compared_2 IN ('wins', 'not_better') THEN margin_2 END AS m2,
        log_ifd - log_ifd_below AS m3, log_r_ifd - log_r_ifd_below AS m4
    FROM ({_model(store, scores, models.RULE)}) JOIN policy USING (policy)
    """


def _near_a_limit(store: Store, error: float) -> str:
    """Samples of which any candidate is close to a limit, for a policy that filters before it compares."""
    return f"""
    SELECT sample_id FROM ({_model(store, scores="done", name="candidate_scores")}), policy
    WHERE filter_before_compare
        AND (abs(log_ifd - log_ifd_below) <= {error!r} OR abs(log_r_ifd - log_r_ifd_below) <= {error!r})
    """


def _model(store: Store, scores: str, name: str) -> str:
    """A SQL model over these scores instead of the lake's."""
    project = models.load()

    def name_of(kind: str, name: str) -> str:
        if kind == "ref":
            return f"({project.models[name].sql(name_of)}\n)"
        return {"policies": "policy", "student_scores": f"({store.rows(scores)})"}.get(name, name)

    return project.models[name].sql(name_of)
