"""Collects everything behind a record's verdict from the lake, as plain data, for `srt explain`.

The view `record_lineage` has the same facts for all records, one row per candidate.
"""

import math
from typing import Any

import duckdb

from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.selection.students import known_student
from srt_assets.core.sql.views import connect
from srt_assets.core.tables import CANDIDATES, sql_literal

_MEASURES = {
    "ifd": "higher IFD wins (margin: log IFD)",
    "r_ifd": "lower r-IFD wins (margin: log r-IFD)",
    "perplexity": "lower perplexity of the response wins (margin: nats per token)",
    "longest": "more response tokens win (margin: tokens)",
    "random": "a coin decides",
    "always": "the rewrite always wins",
    "never": "the rewrite never competes",
}
# The challenger in the second comparison, by the winner of the first.
_SECOND = {"original": "reflected_response", "reflected_instruction": "reflected_both"}
_ORDER = f"list_position([{', '.join(map(sql_literal, CANDIDATES))}], candidate)"


def explain(lake: Lake, sample_id: str, student: str | None = None) -> dict[str, Any]:
    """The record, its candidates, its teacher calls, and scores and verdict of each student (or of the one named).

    `sample_id` may be a prefix that only one record has. UserError if there is no such record or student.
    """
    if student is not None:
        known_student(lake, student)
    con = connect(lake)
    try:
        record = _record(con, sample_id)
        found = {"sample_id": record["sample_id"]}
        of_record = "WHERE sample_id = $sample_id"
        candidates = _rows(
            con,
            "SELECT candidate, status, instruction, input, response, content_key, call_key FROM candidates "
            f"{of_record} ORDER BY {_ORDER}",
            found,
        )
        calls = _rows(
            con,
            "SELECT call_key, purpose, model, prompt_version, status, error_type, error, finish_reason, prompt_tokens, "
            "completion_tokens, cost_usd, latency_s, attempt, created_at, reply FROM teacher_calls "
            "WHERE sample_id = $sample_id "
            "OR call_key IN (SELECT call_key FROM candidates WHERE sample_id = $sample_id) "
            "ORDER BY created_at, call_key, attempt",
            found,
        )
        names = [student] if student else _students(con, found)
        return {
            "record": record,
            "candidates": candidates,
            "teacher_calls": calls,
            "students": [_of_student(con, found, name) for name in names],
        }
    finally:
        con.close()


def _record(con: duckdb.DuckDBPyConnection, sample_id: str) -> dict[str, Any]:
    sample_id = sample_id.encode(errors="replace").decode()  # DuckDB refuses text that is not valid UTF-8
    rows = _rows(
        con,
        "SELECT sample_id, dataset, source_file, source_index, instruction, input, response FROM raw_records "
        "WHERE starts_with(sample_id, $sample_id) ORDER BY sample_id LIMIT 4",
        {"sample_id": sample_id},
    )
    if not sample_id or not rows:
        raise UserError(
            f"no record has the sample_id {sample_id!r}", "look one up: srt sql 'SELECT sample_id FROM raw_records'"
        )
    exact = [row for row in rows if row["sample_id"] == sample_id]
    if len(rows) > 1 and not exact:
        names = ", ".join(row["sample_id"] for row in rows[:3])
        raise UserError(f"several records begin with {sample_id!r}: {names} …", "give more of its digits")
    return (exact or rows)[0]


def _students(con: duckdb.DuckDBPyConnection, found: dict[str, Any]) -> list[str]:
    sql = "SELECT student FROM {} WHERE sample_id = $sample_id"
    rows = con.execute(f"{sql.format('decisions')} UNION {sql.format('student_scores')} ORDER BY 1", found).fetchall()
    return [name for (name,) in rows]


def _of_student(con: duckdb.DuckDBPyConnection, found: dict[str, Any], student: str) -> dict[str, Any]:
    mine = found | {"student": student}
    of_both = "WHERE sample_id = $sample_id AND student = $student"
    scores = _rows(
        con,
        "SELECT candidate, status, truncated, n_tokens_instruction, n_tokens_response, loss_response, "
        "loss_response_given_prompt, loss_instruction, loss_instruction_given_response, log_ifd, log_r_ifd, ifd_ppl, "
        f"r_ifd_ppl FROM candidate_scores {of_both} ORDER BY {_ORDER}",
        mine,
    )
    verdicts = _rows(con, f"SELECT * FROM decisions {of_both}", mine)
    verdict = verdicts[0] if verdicts else None
    policy = _rows(
        con,
        "SELECT * FROM policies WHERE student = $student AND active",
        {"student": student},
    )
    others = _rows(
        con,
        f"SELECT policy, chosen, outcome, reason FROM policy_decisions {of_both} ORDER BY policy",
        mine,
    )
    return {
        "student": student,
        "scores": scores,
        "policy": policy[0] if policy else None,
        "comparisons": _comparisons(verdict, policy[0]) if verdict and policy else [],
        "verdict": verdict,
        "policies": others,
    }


def _comparisons(verdict: dict[str, Any], policy: dict[str, Any]) -> list[dict[str, Any]]:
    """The two comparisons of the rule: challenger, defender, measure, result and margin."""
    first = "reflected_instruction" if "instruction" in verdict["branch"] else "original"
    pairs = (("reflected_instruction", "original"), (_SECOND[first], first))
    return [
        {
            "challenger": challenger,
            "defender": defender,
            "by": policy[f"compare_{place}"],
            "meaning": _MEASURES[policy[f"compare_{place}"]],
            "result": verdict[f"compared_{place}"],
            "margin": verdict[f"margin_{place}"],
            "winner": challenger if verdict[f"compared_{place}"].startswith("wins") else defender,
        }
        for place, (challenger, defender) in enumerate(pairs, start=1)
    ]


def _rows(con: duckdb.DuckDBPyConnection, sql: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    cursor = con.execute(sql, values)
    columns = [d[0] for d in cursor.description or []]
    return [dict(zip(columns, map(_finite, row), strict=True)) for row in cursor.fetchall()]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
