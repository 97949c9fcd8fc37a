"""decisions.sql against an independent Python oracle of the official tree, over generated score tables."""

import math
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_lake import candidate_rows, record, score_row, small_lake, write_candidates, write_scores

from srt_assets.core.errors import StageError
from srt_assets.core.selection import decide, rule
from srt_assets.core.selection.policies import policy_rows
from srt_assets.core.sql import models
from srt_assets.core.tables import CANDIDATES, TABLES
from srt_assets.settings import Project, Selection, Settings

ORI, INS, RES, BOTH = CANDIDATES


@dataclass(frozen=True)
class Cell:
    """A candidate: log ratios (None, NaN and infinities too), status, and whether its texts are the original's."""

    ifd: float | None
    r_ifd: float | None
    status: str = "ok"
    copy: bool = False
    text: str | None = None
    tokens: int = 4
    row: bool = True


# Multiples of 1/4 make ties frequent and their differences exact.
number = st.one_of(st.none(), st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(-4, 4).map(lambda n: n / 4))
cell = st.builds(
    Cell, number, number, st.sampled_from(["ok"] * 6 + ["no_markers"]), st.sampled_from([False] * 6 + [True])
)
samples = st.lists(st.tuples(cell.map(lambda c: Cell(c.ifd, c.r_ifd)), cell, cell, cell), min_size=1, max_size=25)


def number_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def official(four: tuple[Cell, ...]) -> tuple[str, bool]:
    """(winner, kept): selection_code/get_select_data.py, with the design's rule for what has no number."""
    ori, ins, res, both = four

    def beats(challenger: Cell, a: float | None, b: float | None) -> bool:
        a, b = number_or_none(a), number_or_none(b)
        return challenger.status == "ok" and not challenger.copy and a is not None and b is not None and a < b

    if beats(ins, -ins.ifd if ins.ifd is not None else None, -ori.ifd if ori.ifd is not None else None):
        name, won = (BOTH, both) if beats(both, both.r_ifd, ins.r_ifd) else (INS, ins)
    else:
        name, won = (RES, res) if beats(res, res.r_ifd, ori.r_ifd) else (ORI, ori)
    ifd, r_ifd = number_or_none(won.ifd), number_or_none(won.r_ifd)
    below = ifd is not None and r_ifd is not None and math.exp(ifd) < 1 and math.exp(r_ifd) < 1
    return name, below and name in (RES, BOTH) and won.status == "ok"


DEFAULT = Selection()


def decide_all(table, selection: Selection = DEFAULT, datasets: int = 1) -> dict[str, dict[str, dict]]:
    """policy -> sample -> verdict, by running the two SQL files on the table."""
    candidates, scores = [], []
    for i, four in enumerate(table):
        key = f"{i:016x}"
        for name, c in zip(CANDIDATES, four, strict=True):
            text = (c.text or f"{key}-{ORI if c.copy else name}") if c.status == "ok" else None
            common = {"sample_id": key, "candidate": name, "content_key": text}
            candidates.append({**common, "dataset": f"d{i % datasets}", "status": c.status})
            n = c.tokens
            row = {"student": "s", **common}
            for of, base, value in (("response", 8.0, c.ifd), ("instruction", 8.0, c.r_ifd)):
                given_name = "response_given_prompt" if of == "response" else "instruction_given_response"
                for name_, loss in ((of, base), (given_name, None if value is None else base + value)):
                    ok = c.status == "ok" and loss is not None
                    row |= {
                        f"sum_nll_{name_}": loss * n if ok else None,
                        f"n_tokens_{name_}": n if ok else None,
                        f"status_{name_}": "ok" if ok else "too_long" if c.status == "ok" else "candidate_not_ok",
                    }
            scores += [row] if c.row else []
    con = duckdb.connect()
    try:
        rows = policy_rows(selection, 7, "s")
        for name, content in (
            ("candidates", candidates),
            ("student_scores", scores),
            ("policies", rows),
            ("settled_scores", []),
        ):
            con.register(name, pa.Table.from_pylist(content, schema=TABLES[name].arrow_schema))
        con.execute("CREATE VIEW asked AS SELECT * REPLACE (true AS active) FROM policies")
        rule = models.written_out(models.RULE, {"policies": "asked"}.get)
        verdicts = con.sql(rule).to_arrow_table().to_pylist()
    finally:
        con.close()
    found: dict[str, dict[str, dict]] = {}
    for v in verdicts:
        assert v["sample_id"] not in found.setdefault(v["policy"], {})
        found[v["policy"]][v["sample_id"]] = v
    assert all(len(of) == len(table) for of in found.values())
    return found


@settings(max_examples=120, deadline=None)
@given(samples)
def test_selective_is_the_official_tree(table):
    verdicts = decide_all(table)["selective"]
    for i, four in enumerate(table):
        v = verdicts[f"{i:016x}"]
        assert (v["chosen"], v["kept"]) == official(four), (four, v)
        assert v["outcome"] == (
            "kept" if v["kept"] else "rejected" if v["reason"].startswith("rejected_") else "not_chosen"
        )
        if v["outcome"] == "rejected":
            won = four[CANDIDATES.index(v["chosen"])]
            assert number_or_none(won.ifd) is None or number_or_none(won.r_ifd) is None


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(samples)
def test_what_is_kept_is_ok_and_within_its_limits_under_every_switch(table):
    for selection in (
        Selection(keep_unreflected=True),
        Selection(filter_before_compare=True),
        Selection(filter_before_compare=True, keep_unreflected=True),
    ):
        for policy, verdicts in decide_all(table, selection).items():
            for i, four in enumerate(table):
                v = verdicts[f"{i:016x}"]
                won = four[CANDIDATES.index(v["chosen"])]
                if not v["kept"]:
                    continue
                assert won.status == "ok"
                if policy in ("selective", "ifd_only"):
                    assert won.ifd is not None and won.ifd < 0
                if policy in ("selective", "r_ifd_only"):
                    assert won.r_ifd is not None and won.r_ifd < 0


GOOD = Cell(-0.25, -0.25)


@pytest.mark.parametrize(
    ("four", "chosen", "reason"),
    [
        ((Cell(-1.0, -0.5), GOOD, GOOD, Cell(-0.5, -1.0)), BOTH, "kept"),
        ((Cell(-1.0, -0.5), GOOD, GOOD, GOOD), INS, "response_not_reflected"),  # a tie keeps the unreflected
        ((GOOD, GOOD, Cell(-0.5, -1.0), GOOD), RES, "kept"),  # a tie in IFD keeps the original
        ((GOOD, Cell(-1.0, 0), GOOD, GOOD), ORI, "response_not_reflected"),
        ((Cell(-1.0, -0.5), GOOD, GOOD, Cell(0.0, -1.0)), BOTH, "ifd_not_below_1"),  # 1 is not below 1
        ((Cell(-1.0, 1.0), Cell(-0.5, 1.0), GOOD, Cell(-0.5, 0.5)), BOTH, "r_ifd_not_below_1"),
        ((Cell(math.nan, -0.5), GOOD, GOOD, GOOD), ORI, "rejected_not_finite"),
        ((Cell(None, -0.5), GOOD, GOOD, GOOD), ORI, "rejected_too_long"),
        ((Cell(-1.0, -0.5), Cell(-0.5, math.inf), GOOD, GOOD), INS, "rejected_not_finite"),
        ((Cell(-1.0, -0.5), Cell(9, 9, "no_markers"), Cell(9, 9, "refused"), GOOD), ORI, "response_not_reflected"),
    ],
)
def test_every_branch_has_its_reason(four, chosen, reason):
    verdict = decide_all([four])["selective"][f"{0:016x}"]
    assert (verdict["chosen"], verdict["reason"]) == (chosen, reason)


def test_a_copy_of_the_original_and_a_failed_rewrite_lose_with_their_reason():
    first = f"{0:016x}"
    better = Cell(-0.5, -1.0, copy=True)
    verdict = decide_all([(Cell(-1.0, -0.5), GOOD, GOOD, better)])["selective"][first]
    assert (verdict["chosen"], verdict["compared_2"]) == (INS, "copy_of_original")
    verdict = decide_all([(Cell(-1.0, -0.5), better, Cell(0, 0, "refused"), GOOD)])["selective"][first]
    assert (verdict["chosen"], verdict["compared_1"], verdict["compared_2"]) == (ORI, "copy_of_original", "refused")
    verdict = decide_all([(Cell(-1.0, -0.5), Cell(9, 9, "no_markers"), GOOD, GOOD)])["selective"][first]
    assert verdict["compared_1"] == "no_markers"
    twins = (Cell(-0.25, -0.25, text="same"), GOOD, Cell(-0.5, -1.0, text="same"))
    verdict = decide_all([(Cell(-1.0, -0.5), *twins)])["selective"][first]
    assert (verdict["chosen"], verdict["compared_2"]) == (INS, "copy_of_the_other")


def test_the_other_policies():
    table = [(Cell(-1.0, -0.5), GOOD, GOOD, Cell(-0.5, -1.0)), (GOOD, GOOD, GOOD, Cell(0, 0, "refused"))] * 40
    found = decide_all(table)
    assert {v["chosen"] for v in found["original"].values()} == {ORI}
    assert all(v["kept"] for v in found["original"].values())
    outcomes = [v["reason"] for _, v in sorted(found["reflected_all"].items())]
    assert outcomes == ["kept", "rejected_refused"] * 40
    assert found["ifd_only"][f"{0:016x}"]["chosen"] == INS
    assert found["r_ifd_only"][f"{0:016x}"]["chosen"] == RES or found["r_ifd_only"][f"{0:016x}"]["chosen"] == ORI
    chosen = [v["chosen"] for v in found["random"].values()]
    assert set(chosen) == set(CANDIDATES)
    assert decide_all(table)["random"] == found["random"]


def test_perplexity_prefers_the_lower_and_longest_the_longer():
    first = f"{0:016x}"
    # L(y|x) is 8 plus the first number.
    low_then_lower = (Cell(1.0, 0.5), Cell(0.5, 0.5), Cell(0.0, 0.5), Cell(0.25, 0.5))
    high_then_lower = (Cell(0.5, 0.5), Cell(1.0, 0.5), Cell(0.25, 0.5), Cell(0.0, 0.5))
    ties = (Cell(0.5, 0.5), Cell(0.5, 0.5), Cell(0.5, 0.5), Cell(0.0, 0.5))
    for four, chosen in ((low_then_lower, BOTH), (high_then_lower, RES), (ties, ORI)):
        verdict = decide_all([four])["perplexity"][first]
        assert (verdict["chosen"], verdict["kept"]) == (chosen, True)
    for lengths, chosen in (((4, 5, 9, 6), BOTH), ((5, 4, 6, 9), RES), ((5, 6, 9, 6), INS), ((5, 5, 5, 9), ORI)):
        four = tuple(Cell(0.5, 0.5, tokens=n) for n in lengths)
        verdict = decide_all([four])["longest"][first]
        assert (verdict["chosen"], verdict["kept"]) == (chosen, True)
    unscored = (Cell(None, 0.5), Cell(0.5, 0.5), Cell(0.5, 0.5), Cell(0.5, 0.5))
    assert decide_all([unscored])["perplexity"][first]["reason"] == "rejected_too_long"


def test_filter_before_compare_falls_back_to_the_original_side():
    four = (GOOD, Cell(0.5, -0.5), Cell(-0.25, -0.5), Cell(-0.5, -1.0))  # the rewrite's IFD is above 1
    first = f"{0:016x}"
    assert decide_all([(GOOD, Cell(0.5, -0.5), Cell(-0.25, -0.5), GOOD)])["selective"][first]["chosen"] == INS
    filtered = decide_all([four], Selection(filter_before_compare=True))["selective"][first]
    assert (filtered["chosen"], filtered["kept"], filtered["compared_1"]) == (RES, True, "filtered_out")


def test_filtered_out_on_either_side_of_either_comparison():
    first = f"{0:016x}"

    def verdict(*four):
        found = decide_all([four], Selection(filter_before_compare=True))["selective"][first]
        return found["compared_1"], found["compared_2"], found["chosen"]

    assert verdict(Cell(0.5, -0.5), GOOD, GOOD, GOOD) == ("wins_over_filtered_out", "not_better", INS)
    assert verdict(GOOD, GOOD, Cell(0.5, -1.0), GOOD) == ("not_better", "filtered_out", ORI)
    assert verdict(Cell(-0.25, 0.5), Cell(0.5, 0), Cell(-0.5, -0.5), GOOD) == (
        "filtered_out",
        "wins_over_filtered_out",
        RES,
    )
    # Both are out: the challenger does not win by default.
    assert verdict(Cell(0.5, 0.5), Cell(0.5, 0.5), GOOD, GOOD)[0] == "filtered_out"


def test_what_has_no_score_says_why_on_either_side():
    first = f"{0:016x}"

    def verdict(*four):
        found = decide_all([four])["selective"][first]
        return found["compared_1"], found["compared_2"], found["reason"]

    assert verdict(GOOD, Cell(None, 0), GOOD, GOOD)[:2] == ("too_long", "not_better")
    assert verdict(GOOD, GOOD, GOOD, GOOD)[:2] == ("not_better", "not_better")
    assert verdict(Cell(-0.25, None), GOOD, GOOD, GOOD)[1:] == ("too_long", "rejected_too_long")
    # A record that was never scored gets its verdict too.
    missing = tuple(Cell(0, 0, row=False) for _ in CANDIDATES)
    assert verdict(*missing) == ("not_scored", "not_scored", "rejected_not_scored")


def test_equal_scores_are_ranked_by_id():
    table = [(Cell(-2.0, -0.5), Cell(-5.0, 0), Cell(-1.0, -1.0), GOOD)] * 50
    verdicts = decide_all(table[::-1], Selection(top_k=7))["selective"]
    assert sorted(k for k, v in verdicts.items() if v["kept"]) == [f"{i:016x}" for i in range(7)]


@pytest.mark.parametrize(
    ("selection", "kept"),
    [
        (Selection(top_k=3), 3),
        (Selection(top_k=3, top_k_per_dataset=True), 6),
        (Selection(top_k=0.29), 29),  # 0.29 * 100 is 28.999… in floating point
        (Selection(top_k=1.0), 100),
        (Selection(top_k=1), 1),
        (Selection(top_k=0.001), 1),
        (Selection(top_k=1000), 100),
        (Selection(), 100),
    ],
)
def test_top_k(selection, kept):
    table = [(Cell(-2.0, -0.5), Cell(-5.0, 0), Cell(-1 - i / 128, -1.0), GOOD) for i in range(100)]
    verdicts = decide_all(table, selection, datasets=2)["selective"]
    chosen = sorted(k for k, v in verdicts.items() if v["kept"])
    assert len(chosen) == kept
    assert chosen == [f"{i:016x}" for i in range(kept)]  # the highest IFD first
    assert {v["reason"] for v in verdicts.values()} <= {"kept", "below_top_k"}


def test_stage_stores_and_caches(tmp_path):
    lake = small_lake(tmp_path)
    chosen = Settings(project=Project(home=tmp_path))
    first = decide.STAGE.run(chosen, lake, student="tiny")
    assert (first.cached, first.stats["kept"], first.stats["not_chosen"], first.stats["rejected"]) == (False, 3, 4, 1)
    assert decide.STAGE.run(chosen, lake, student="tiny").cached
    changed = chosen.model_copy(update={"selection": Selection(policy="original")})
    second = decide.STAGE.run(changed, lake, student="tiny")
    assert not second.cached and second.stats["kept"] == 8
    con = lake.connect()
    try:
        positions = con.execute("SELECT position, sample_id FROM selected_set ORDER BY position").fetchall()
        arm = con.execute(f"SELECT count(*) FROM ({decide.arm_sql(lake, 'tiny', 'selective')})").fetchall()
    finally:
        con.close()
    with_active_only = rule.rule_sql(lake, "tiny", "(SELECT * FROM policies WHERE active)")
    con = lake.connect()
    try:
        alone = con.execute(f"SELECT * FROM ({with_active_only}) ORDER BY sample_id").fetchall()
        assert con.execute("SELECT * FROM decisions ORDER BY sample_id").fetchall() == alone
    finally:
        con.close()
    assert [p for p, _ in positions] == list(range(8)) and positions == sorted(positions, key=lambda r: r[1])
    assert arm == [(3,)]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("candidates", "candidates have changed since student tiny scored them"),
        ("scores", "scores or candidates of student tiny changed while they were being decided"),
    ],
)
def test_what_changes_while_it_is_decided_is_never_selected(tmp_path, monkeypatch, changed, said):
    lake = small_lake(tmp_path)
    sink = lake.sink_part

    def changed_meanwhile(con, sql, table, partition=None):
        part = sink(con, sql, table, partition)
        if table == "policy_decisions":
            rows = [row for i in range(8) for row in candidate_rows(record(i))]
            if changed == "scores":
                write_scores(lake, "tiny", [score_row("tiny", row, (9.0, 1.0, 9.0, 1.0)) for row in rows])
            else:
                write_candidates(lake, [row | {"response": "never scored", "content_key": "other"} for row in rows])
        return part

    chosen = Settings(project=Project(home=tmp_path))
    with monkeypatch.context() as during:
        during.setattr(lake, "sink_part", changed_meanwhile)
        with pytest.raises(StageError, match=said):
            decide.STAGE.run(chosen, lake, student="tiny")
    assert lake.manifest("selected_set", "student=tiny") is None
