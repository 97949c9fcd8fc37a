"""The views for people: values worked out by hand on a small lake."""

from datetime import datetime
from math import exp
from pathlib import Path
from typing import Any

import pytest
from selection_lake import candidate_rows, ratios, record, score_row, small_lake, write_candidates, write_scores

from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.selection import decide
from srt_assets.core.sql import models, views
from srt_assets.settings import Project, Settings


def ask(lake: Lake, sql: str) -> list[dict[str, Any]]:
    con = views.connect(lake)
    try:
        return con.sql(sql).to_arrow_table().to_pylist()
    finally:
        con.close()


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Students a and b over eight records (see `small_lake`): a keeps records 0, 2 and 6; b keeps 1, 3 and 5."""
    home = tmp_path_factory.mktemp("views")
    made = small_lake(home, students=("a", "b"))
    for student in ("a", "b"):
        decide.STAGE.run(Settings(project=Project(home=home)), made, student=student)
    return made


def put(lake: Lake, table: str, rows: list[dict[str, Any]], partition: str | None = None) -> None:
    part = lake.write_part(table, rows, partition)
    lake.commit(table, [part], fingerprint=Fingerprint.of(of="put"), code_version="1", partition=partition)


def test_candidate_scores_are_the_paper_formulas(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    four = candidate_rows(record(0), {"reflected_both": "refused"})
    rows = [score_row("s", row, (3.0, 2.5, 4.0, 3.0), tokens=10) for row in four]
    rows[1]["sum_nll_response"] = float("nan")  # said to be ok, and is no number
    rows[2]["n_tokens_instruction"] = 0
    write_candidates(lake, four)
    write_scores(lake, "s", rows)
    found = {r["candidate"]: r for r in ask(lake, "FROM candidate_scores")}
    good = found["original"]
    assert (good["status"], good["loss_response"], good["loss_instruction_given_response"]) == ("ok", 3.0, 3.0)
    assert (good["log_ifd"], good["log_r_ifd"]) == (-0.5, -1.0)
    assert (good["ifd_ppl"], good["r_ifd_ppl"]) == (exp(-0.5), exp(-1.0))
    assert (good["ifd_loss"], good["r_ifd_loss"]) == (2.5 / 3, 3 / 4)
    assert (good["ppl_response"], good["ppl_response_given_prompt"]) == (exp(3.0), exp(2.5))
    assert (good["ppl_instruction"], good["ppl_instruction_given_response"]) == (exp(4.0), exp(3.0))
    nan = found["reflected_instruction"]
    assert (nan["status"], nan["loss_response"], nan["log_ifd"], nan["log_r_ifd"]) == ("not_finite", None, None, -1.0)
    none = found["reflected_response"]
    assert (none["status"], none["loss_instruction"], none["r_ifd_loss"], none["log_ifd"]) == (
        "not_finite",
        None,
        None,
        -0.5,
    )
    assert found["reflected_both"]["status"] == "candidate_not_ok" and found["reflected_both"]["ifd_ppl"] is None


def test_final_scores_are_settled_ones_in_place_of_low_precision_of_the_same_texts(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    records = [record(n) for n in range(7)]
    write_candidates(lake, [row for r in records for row in candidate_rows(r)])
    facts = {"dtype": "bfloat16", "max_length": 9, "scoring_version": "2", "first_token": "bos"}
    low = [score_row("s", row, (3.0, 2.5, 4.0, 3.0)) | facts for r in records for row in candidate_rows(r)]
    low += [row | {"student": "t"} for row in low]
    exact = [score_row("s", row, (3.0, 2.0, 4.0, 3.0)) | facts for r in records for row in candidate_rows(r)]
    exact = [row | {"dtype": "float32"} for row in exact]
    for row in low[:4]:
        row["dtype"] = "float32"  # needs no other
    for other, changed in enumerate(("content_key", "student_fingerprint", "template", "scoring_version"), start=1):
        for row in exact[4 * other : 4 * other + 4]:
            row[changed] = "another"
    exact[21]["max_length"] = 8
    for student in "st":
        put(lake, "student_scores", [row for row in low if row["student"] == student], f"student={student}")
    put(lake, "settled_scores", exact, "student=s")
    taken = {(row["sample_id"], row["candidate"]) for row in (exact[20], *exact[22:])}
    found = ask(lake, "FROM final_scores")
    assert len(found) == len(low)
    changed = [row for row in found if row["sum_nll_response_given_prompt"] == 16.0]
    assert {(row["student"], row["sample_id"], row["candidate"]) for row in changed} == {("s", *key) for key in taken}
    assert {row["dtype"] for row in changed} == {"float32"}
    ratios = ask(lake, "FROM candidate_scores WHERE log_ifd = -1.0")
    assert {(row["student"], row["sample_id"], row["candidate"]) for row in ratios} == {("s", *key) for key in taken}


def test_score_summary(lake: Lake) -> None:
    rows = {r["candidate"]: r for r in ask(lake, "FROM score_summary WHERE student = 'a'")}
    assert list(rows) == ["original", "reflected_instruction", "reflected_response", "reflected_both", "selected"]
    assert [(r["samples"], r["scored"]) for r in rows.values()] == [(8, 7), (8, 8), (8, 8), (8, 7), (3, 3)]
    assert rows["original"]["ifd"] == pytest.approx(exp(-0.5))
    assert rows["original"]["response_tokens"] == 11  # 8 to 14; that of the eighth record has none
    selected = rows["selected"]  # records 0, 2, 6: log IFD -0.3, log r-IFD -0.5 each
    assert (selected["ifd"], selected["r_ifd"]) == (pytest.approx(exp(-0.3)), pytest.approx(exp(-0.5)))
    assert (selected["instruction_tokens"], selected["ifd_above_1"]) == (pytest.approx(32 / 3), 0)
    # One outlier rules the mean and not the median: records 1, 3, 5, 7 of this candidate are at -0.5.
    assert rows["reflected_both"]["ifd_median"] == pytest.approx(exp(-0.5))
    assert rows["reflected_both"]["response_ppl_given_prompt"] == pytest.approx((3 * exp(1.7) + 4 * exp(1.5)) / 7)


def test_selection_summary_and_row_accounting(lake: Lake) -> None:
    rows = ask(lake, "FROM selection_summary WHERE student = 'a' AND active")
    assert [(r["branch"], r["outcome"], r["reason"], r["samples"], r["share"]) for r in rows] == [
        ("instruction", "not_chosen", "response_not_reflected", 3, 0.375),
        ("response", "kept", "kept", 2, 0.25),
        ("instruction+response", "kept", "kept", 1, 0.125),
        ("neither", "rejected", "rejected_too_long", 1, 0.125),
        ("neither", "not_chosen", "response_not_reflected", 1, 0.125),
    ]
    total = ask(
        lake, "SELECT student, policy, sum(samples)::INT AS n, sum(share) AS s FROM selection_summary GROUP BY ALL"
    )
    assert len(total) == 16 and {(r["n"], r["s"]) for r in total} == {(8, 1.0)}
    [a, _] = ask(lake, "FROM row_accounting")
    names = ("input_rows", "raw_rejects", "records", "kept", "not_chosen", "rejected", "unaccounted", "kept_share")
    assert [a[n] for n in names] == [10, 2, 8, 3, 4, 1, 0, 0.375]


def test_decision_flips(lake: Lake) -> None:
    of = {record(i)["sample_id"]: i for i in range(8)}
    rows = {of[r["sample_id"]]: r for r in ask(lake, "FROM decision_flips")}
    assert {i: r["kind"] for i, r in rows.items()} == dict.fromkeys((0, 2, 6), "lost") | dict.fromkeys(
        (1, 3, 5), "gained"
    )
    first = rows[0]
    assert (first["student_a"], first["student_b"]) == ("a", "b")
    assert (first["chosen_a"], first["chosen_b"]) == ("reflected_both", "reflected_instruction")
    assert first["log_ifd_change"] == pytest.approx(0.1) and first["log_r_ifd_change"] == pytest.approx(0.2)


def verdict(student: str, sample: str, chosen: str, kept: bool, policy: str = "x", reason: str = "") -> dict[str, Any]:
    known = {"student": student, "sample_id": sample, "chosen": chosen, "kept": kept, "policy": policy}
    return known | {"reason": reason or ("kept" if kept else "ifd_not_below_1")}


def test_every_kind_of_flip(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    cases = {  # sample: a's verdict, b's verdict, kind
        "s1": (("original", True, ""), ("reflected_both", True, ""), "other_candidate"),
        "s2": (("original", True, ""), ("original", False, ""), "lost"),
        "s3": (("original", False, ""), ("original", True, ""), "gained"),
        "s4": (("original", False, ""), ("original", False, "rejected_too_long"), "verdict"),
        "s5": (("original", True, ""), ("original", True, ""), None),
    }
    for place, student in enumerate(("a", "b")):
        put(
            lake,
            "decisions",
            [verdict(student, s, c[place][0], c[place][1], reason=c[place][2]) for s, c in cases.items()],
            f"student={student}",
        )
    found = {r["sample_id"]: r["kind"] for r in ask(lake, "FROM decision_flips")}
    assert found == {s: kind for s, (_, _, kind) in cases.items() if kind}


def test_policy_overlap(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    rows = [
        verdict("s", "1", "original", True, "x"),
        verdict("s", "2", "reflected_both", True, "x"),
        verdict("s", "3", "original", False, "x"),
        verdict("s", "1", "reflected_response", True, "y"),
        verdict("s", "2", "reflected_both", True, "y"),
        verdict("s", "3", "original", True, "y"),
    ]
    put(lake, "policy_decisions", rows, "student=s")
    [row] = ask(lake, "FROM policy_overlap")
    names = ("policy_a", "policy_b", "kept_a", "kept_b", "kept_both", "same_candidate")
    assert [row[n] for n in names] == ["x", "y", 2, 3, 2, 1]
    assert row["jaccard"] == pytest.approx(1 / 3)


def test_acceptance_by_length(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    scores, verdicts = [], []
    for i, (tokens, kept) in enumerate([(1, False), (4, True), (7, False), (8, True)]):
        for row in candidate_rows(record(i)):
            scores.append(
                score_row("s", row, ratios(-0.5, -0.5), tokens if row["candidate"] == "original" else 3 * tokens)
            )
        chosen = "reflected_response" if kept else "original"
        verdicts.append(verdict("s", record(i)["sample_id"], chosen, kept))
    write_scores(lake, "s", scores)
    put(lake, "decisions", verdicts, "student=s")
    rows = ask(lake, "FROM acceptance_by_length")
    found = [(r["tokens_from"], r["tokens_to"], r["samples"], r["kept"], r["kept_share"]) for r in rows]
    assert found == [(1, 1, 1, 0, 0.0), (4, 7, 2, 1, 0.5), (8, 15, 1, 1, 1.0)]
    assert [r["response_tokens_chosen"] for r in rows] == [1, (12 + 7) / 2, 24]


def test_teacher_cost(tmp_path: Path) -> None:
    lake = Lake(tmp_path)

    def call(n: int, status: str, attempt: int, cost: float | None, latency: float) -> dict[str, Any]:
        return {
            **{
                "call_key": f"k{n}",
                "sample_id": "s",
                "purpose": "reflect_response",
                "model": "m",
                "prompt_version": "1",
            },
            **{"status": status, "attempt": attempt, "prompt_tokens": 10, "completion_tokens": 5, "cost_usd": cost},
            **{"latency_s": latency, "created_at": datetime(2026, 1, n)},
        }

    put(
        lake,
        "teacher_calls",
        [call(1, "ok", 1, 0.5, 1.0), call(2, "ok", 2, None, 3.0), call(3, "timeout", 1, None, 9.0)],
    )
    ok, failed = ask(lake, "FROM teacher_cost")
    names = (
        "status",
        "calls",
        "retries",
        "prompt_tokens",
        "completion_tokens",
        "cost_usd",
        "unpriced_calls",
        "latency_s",
    )
    assert [ok[n] for n in names] == ["ok", 2, 1, 20, 10, 0.5, 1, 2.0]
    # No price is known: null, never 0.
    assert [failed[n] for n in names] == ["timeout", 1, 0, 10, 5, None, 1, 9.0]
    assert (ok["first_at"], ok["last_at"]) == (datetime(2026, 1, 1), datetime(2026, 1, 2))


def test_arm_comparison(tmp_path: Path) -> None:
    lake = Lake(tmp_path)

    def run(arm: str, day: int, after: float | None, active: bool = False, before: float = 3.0) -> dict[str, Any]:
        return {
            **{"student": "s", "run": f"{arm}-{day}", "arm": arm, "is_active_policy": active, "n_held_out": 4},
            **{"eval_loss_before": before, "eval_loss_after": after, "finished_at": datetime(2026, 1, day)},
            **{"eval_original_loss_before": 5.0, "eval_original_loss_after": 4.0 + day},
        }

    runs = [
        run("selective", 1, 9.0, active=True),
        run("selective", 2, 2.0, active=True),
        run("random", 2, 2.5),
        run("original", 2, 1.75),
        run("longest", 2, 1.0, before=7.0),  # measured on other records
        run("perplexity", 2, None),
    ]
    put(lake, "training_runs", runs, "student=s")
    rows = ask(lake, "FROM arm_comparison")
    assert [(r["arm"], r["is_active"], r["improvement"], r["behind_active"]) for r in rows] == [
        ("selective", True, 1.0, 0.0),
        ("longest", False, 6.0, None),
        ("original", False, 1.25, -0.25),
        ("random", False, 0.5, 0.5),
        ("perplexity", False, None, None),
    ]
    assert rows[0]["run"] == "selective-2" and rows[2]["original_behind_active"] == 0.0


def test_every_view_has_a_value_test() -> None:
    tested = Path(__file__).read_text() + (Path(__file__).parent / "test_selection_answers.py").read_text()
    assert [view.name for view in models.load().views if view.name not in tested] == []
