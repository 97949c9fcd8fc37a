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


def low_precision_samples(store: Store) -> int:
    """Samples with a score that was not computed in fp32."""
    row = store.con.execute(f"SELECT count(*) FROM ({_low('done')})").fetchone()
    return row[0] if row else 0


def settle(store: Store, policies: list[dict], rescore: Callable[[list[str]], None]) -> dict[str, int | float | str]:
    """Measure the error of low precision, re-score close calls in fp32, and count the decisions that turned.

    `policies`: rows of the table of that name; the active one counts. `rescore(samples)` puts fp32 scores of these
    samples into the store. The error is the largest change of a margin among the measured records; a decision is
    close if one of its margins is not larger.
    """
    low = low_precision_samples(store)
    if not low:
        return {}
    con = store.con
    asked = pa.Table.from_pylist(policies, schema=TABLES["policies"].arrow_schema)
    con.register("asked", asked)
    con.execute("CREATE OR REPLACE TABLE policy AS SELECT * FROM asked WHERE active")
    con.unregister("asked")
    con.execute("CREATE OR REPLACE TABLE before AS FROM done")
    measured = _samples(
        store, f"SELECT sample_id FROM ({_low('done')}) ORDER BY hash(sample_id) LIMIT {MEASURED_RECORDS}"
    )
    rescore(measured)
    con.execute("CREATE OR REPLACE TABLE verdict_before AS " + _verdicts(store, "before"))
    con.execute("CREATE OR REPLACE TABLE measured AS SELECT unnest(?::VARCHAR[]) AS sample_id", [measured])
    # Margins compare like with like only where the comparison before came out the same.
    row = con.execute(
        "SELECT max(greatest(abs(a.m1 - b.m1), CASE WHEN a.won_1 = b.won_1 THEN abs(a.m2 - b.m2) END, "
        "CASE WHEN a.chosen = b.chosen THEN greatest(abs(a.m3 - b.m3), abs(a.m4 - b.m4)) END)) "
        f"FROM verdict_before a JOIN ({_verdicts(store, 'done')}) b USING (sample_id) "
        "SEMI JOIN measured USING (sample_id)"
    ).fetchone()
    error = row[0] if row and row[0] is not None else 0.0
    near = " OR ".join(f"abs({m}) <= {error!r}" for m in ("m1", "m2", "m3", "m4"))
    close = _samples(
        store,
        f"SELECT sample_id FROM ({_low('done')}) SEMI JOIN (SELECT sample_id FROM ({_verdicts(store, 'done')}) "
        f"WHERE {near} UNION {_near_a_limit(store, error)} UNION {_overflowed()}) USING (sample_id) ORDER BY 1",
    )
    rescore(close)
    row = con.execute(
        f"SELECT count(*) FROM verdict_before a JOIN ({_verdicts(store, 'done')}) b USING (sample_id) "
        "WHERE (a.chosen, a.kept) <> (b.chosen, b.kept)"
    ).fetchone()
    return {
        "low_precision_records": low,
        "low_precision_error": error,
        "rescored_in_fp32": len(set(measured) | set(close)),
        "decisions_flipped": row[0] if row else 0,
    }


def _samples(store: Store, sql: str) -> list[str]:
    return [key for (key,) in store.con.execute(sql).fetchall()]


def _low(scores: str) -> str:
    return (
        f"SELECT sample_id FROM wanted w JOIN {scores} d ON w.ok AND w.content_key = d.content_key "
        "GROUP BY sample_id HAVING bool_or(dtype <> 'float32')"
    )


def _overflowed() -> str:
    """Samples with a loss that was no number in low precision: it may well be one in fp32."""
    overflowed = " OR ".join(f"status_{name} = 'not_finite'" for name in PASSES)
    return (
        "SELECT sample_id FROM wanted w JOIN done d ON w.ok AND w.content_key = d.content_key "
        f"WHERE dtype <> 'float32' AND ({overflowed})"
    )


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
