"""Verdicts that low precision could turn: which ones they are under each policy, and that they are settled in fp32."""

from __future__ import annotations

import shutil

import pytest
import torch
from student_lake import RECORDS, four, make_lake, put_candidates, scores_of, settings_for

from srt_assets.core import scoring
from srt_assets.core.errors import StageError
from srt_assets.core.hashing import Fingerprint, sample_id
from srt_assets.core.lake import Lake
from srt_assets.core.scoring import pace, precision
from srt_assets.core.scoring import stage as scores
from srt_assets.core.scoring.chunks import Scored
from srt_assets.core.scoring.precision import Error
from srt_assets.core.selection import decide, settle
from srt_assets.core.selection.policies import policy_rows
from srt_assets.core.sql import models, views
from srt_assets.core.tables import PASSES
from srt_assets.settings import Selection, Settings, Training

torch.set_num_threads(1)

# log IFD, log r-IFD and L(y|x) of the four: no comparison or limit of any policy is closer than 0.4.
FAR = {
    "original": (-2.0, -0.5, 4.0),
    "reflected_instruction": (-1.5, -1.0, 3.0),
    "reflected_response": (-1.0, -1.5, 2.0),
    "reflected_both": (-0.5, -2.0, 1.0),
}
CASES = {
    "far": FAR,
    "first comparison": FAR | {"reflected_instruction": (-1.98, -1.0, 3.0)},
    "second comparison": FAR | {"reflected_both": (-0.5, -1.02, 1.0)},
    "ifd limit": FAR | {"reflected_both": (-0.02, -2.0, 1.0)},
    "r_ifd limit": FAR | {"reflected_instruction": (-1.5, 0.5, 3.0), "reflected_both": (-0.5, 0.02, 1.0)},
    "perplexity": FAR | {"reflected_instruction": (-1.5, -1.0, 3.99)},
    "loser at the limit": FAR | {"reflected_response": (-0.02, -1.5, 2.0)},
    # What its limits say does not matter: the response is not reflected, or the IFD alone is far above 1.
    "instruction at the limit": FAR
    | {"reflected_instruction": (-0.02, -2.5, 3.0), "reflected_both": (-0.5, -1.0, 1.0)},
    "one limit is enough": FAR | {"reflected_instruction": (-1.5, 0.5, 3.0), "reflected_both": (0.5, 0.02, 1.0)},
}
OF_THE_TREE = {"first comparison", "second comparison", "ifd limit", "r_ifd limit"}
# Policy, switches, arms of training: the records that are close with an error of 0.05.
EXPECTED = [
    (Selection(), [], OF_THE_TREE),
    (Selection(top_k=1), [], OF_THE_TREE),
    (Selection(policy="perplexity"), [], {"perplexity"}),
    (Selection(policy="longest"), [], set()),
    (Selection(policy="reflected_all"), ["random", "original"], set()),
    (Selection(policy="longest"), ["perplexity", "selective"], OF_THE_TREE | {"perplexity"}),
    # There the reflected instruction already lost, so the pairs at the limit are not the winners.
    (Selection(policy="r_ifd_only"), [], {"second comparison"}),
    (Selection(keep_unreflected=True), [], OF_THE_TREE | {"instruction at the limit"}),
    (
        Selection(filter_before_compare=True),
        [],
        OF_THE_TREE | {"loser at the limit", "instruction at the limit", "one limit is enough"},
    ),
]


def key_of(case: str) -> str:
    return sample_id(case, "", "It is.")


def rows_of(case: str, values: dict, dtype: str) -> list[dict]:
    rows = []
    for row in four((case, "", "It is.")):
        ifd, r_ifd, loss = values[row["candidate"]]
        facts = {"student": "tiny", "template": "vicuna", "protocol": "aligned", "max_length": 99, "dtype": dtype}
        numbers = {f"sum_nll_{p}": s for p, s in zip(PASSES, (loss - ifd + 5, loss + 5, 9.0, 9.0 + r_ifd), strict=True)}
        numbers |= {f"n_tokens_{p}": 1 for p in PASSES} | {f"status_{p}": "ok" for p in PASSES}
        names = {name: row[name] for name in ("sample_id", "candidate", "content_key")}
        rows.append({**names, **facts, **numbers})
    return rows


def with_(settings: Settings, selection: Selection, arms: list[str]) -> Settings:
    training = Training.model_validate({"arms": arms})
    return settings.model_copy(update={"selection": selection, "training": training})


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Settings]:
    """Scores in bf16 of all cases, off by 0.05 at most; asked of a student that never has to be loaded."""
    settings = settings_for(dtype="bf16", max_length=99)
    lake = make_lake(
        tmp_path_factory.mktemp("cases"), [r for case in CASES for r in four((case, "", "It is."))], settings
    )
    fingerprint = scores.STAGE.wanted(settings, lake, "tiny").facts["student"]
    facts = {"scoring_version": scoring.VERSION, "student_fingerprint": fingerprint}
    rows = [row | facts for case, values in CASES.items() for row in rows_of(case, values, "bfloat16")]
    stats = {"low_precision_records": len(CASES), **precision.as_stats({"bfloat16": Error(64, 0.05, 0.05, 0.05)})}
    commit(lake, rows, scores.STAGE.wanted(settings, lake, "tiny"), stats)
    return lake, settings


def commit(lake: Lake, rows: list[dict], made_of: Fingerprint, stats: dict) -> None:
    part = lake.write_part("student_scores", rows, "student=tiny")
    lake.commit("student_scores", [part], fingerprint=made_of, code_version="2", partition="student=tiny", stats=stats)


def spied(monkeypatch: pytest.MonkeyPatch, shift: float = 0.0) -> list[set[str]]:
    """Scoring in fp32, replaced: the values of the case, the reflected instruction's moved by `shift`."""
    asked: list[set[str]] = []
    case_of = {key_of(case): case for case in CASES}

    def score_in_fp32(settings, info, home, records, n, progress):
        samples = sorted({sample for sample, _, _ in records})
        asked.append({case_of[sample] for sample in samples})
        assert len(samples) == n
        for sample in samples:
            rows = rows_of(case_of[sample], CASES[case_of[sample]], "float32")
            for row in rows:
                if row["candidate"] == "reflected_instruction":
                    row["sum_nll_response_given_prompt"] += shift
            yield Scored(rows, [sample], 1, 1.0)

    monkeypatch.setattr(scoring, "score_in_fp32", score_in_fp32)
    return asked


def settled(lake: Lake) -> dict[tuple[str, str], dict]:
    with lake.connect() as con:
        rows = con.execute("SELECT * FROM settled_scores").to_arrow_table().to_pylist()
    return {(row["sample_id"], row["candidate"]): row for row in rows}


def decisions(lake: Lake, columns: str = "chosen, kept, reason") -> dict[str, tuple]:
    with lake.connect() as con:
        rows = con.execute(f"SELECT policy, sample_id, {columns} FROM policy_decisions ORDER BY ALL").fetchall()
    return {f"{policy} {sample}": tuple(rest) for policy, sample, *rest in rows}


@pytest.mark.parametrize(("selection", "arms", "expected"), EXPECTED)
def test_what_is_close_is_what_the_asked_policies_compare(cases, tmp_path, monkeypatch, selection, arms, expected):
    shutil.copytree(cases[0].home, tmp_path / "home", symlinks=True)
    lake, settings = Lake(tmp_path / "home"), with_(cases[1], selection, arms)
    asked = spied(monkeypatch)
    stats = decide.STAGE.run(settings, lake, "tiny").stats
    assert set().union(*asked) == expected
    assert (stats["records_settled"], stats["decisions_flipped"]) == (len(expected), 0)
    assert {sample for sample, _ in settled(lake)} == {key_of(case) for case in expected}
    assert {row["dtype"] for row in scores_of(lake).values()} == {"bfloat16"}, "what scoring said stays"
    assert decide.STAGE.run(settings, lake, "tiny").cached
    # Another policy asks only for what the first has not settled.
    asked.clear()
    decide.STAGE.run(with_(cases[1], Selection(filter_before_compare=True), ["perplexity"]), lake, "tiny")
    assert set().union(*asked) == (EXPECTED[-1][2] | {"perplexity"}) - expected


def test_what_is_settled_counts_in_place_of_low_precision(cases, tmp_path, monkeypatch):
    shutil.copytree(cases[0].home, tmp_path / "home", symlinks=True)
    lake, settings = Lake(tmp_path / "home"), cases[1]
    spied(monkeypatch, shift=0.04)  # the first comparison's reflected instruction is at -1.94 then
    case = dict(CASES)
    monkeypatch.setitem(CASES, "first comparison", FAR | {"reflected_instruction": (-2.02, -1.0, 3.0)})
    assert decide.STAGE.run(settings, lake, "tiny").stats["decisions_flipped"] == 0
    before = decisions(lake)
    # Now fp32 says that the original is better.
    monkeypatch.setitem(CASES, "first comparison", FAR | {"reflected_instruction": (-2.06, -1.0, 3.0)})
    lake.commit("settled_scores", [], fingerprint=Fingerprint.of(), code_version="1", partition="student=tiny")
    (lake.directory("selected_set", "student=tiny") / "_manifest.json").unlink()
    (lake.directory("selected_set", "student=tiny") / "_manifest.copy.json").unlink(missing_ok=True)
    stats = decide.STAGE.run(settings, lake, "tiny").stats
    assert stats["decisions_flipped"] == 1
    key = f"selective {key_of('first comparison')}"
    assert decisions(lake)[key][0] == "reflected_response" and before[key][0] == "reflected_both"
    with views.connect(lake) as con:
        found = dict(
            con.execute(
                "SELECT sample_id, log_ifd FROM candidate_scores WHERE candidate = 'reflected_instruction'"
            ).fetchall()
        )
    assert found[key_of("first comparison")] == pytest.approx(-2.02)
    assert found[key_of("far")] == pytest.approx(case["far"]["reflected_instruction"][0])


def test_a_policy_of_before_and_no_error_known(cases, tmp_path, monkeypatch):
    """Scores that an older program settled itself, for one policy, with its error told of that policy's margins."""
    shutil.copytree(cases[0].home, tmp_path / "home", symlinks=True)
    lake, settings = Lake(tmp_path / "home"), cases[1]
    asked = spied(monkeypatch, shift=0.05)
    [active] = [row for row in policy_rows(settings.selection, settings.project.seed, "tiny") if row["active"]]
    rows = list(scores_of(lake).values())
    of_then = Fingerprint.of(
        **scores.STAGE.wanted(settings, lake, "tiny").facts, settled_for=active["policy_fingerprint"]
    )
    commit(lake, rows, of_then, {"low_precision_records": len(CASES), "low_precision_error": 0.05})

    def state(settings: Settings) -> list[str]:
        return [stage.state(settings, lake, "tiny").state for stage in (scores.STAGE, decide.STAGE)]

    assert state(settings) == ["fresh", "missing"]
    decide.STAGE.run(settings, lake, "tiny")
    assert asked == [] and settled(lake) == {} and state(settings) == ["fresh", "fresh"]
    # The older program did not settle for arms either: that is no reason to score now.
    assert state(with_(settings, settings.selection, ["perplexity"])) == ["fresh", "fresh"]
    other = with_(settings, Selection(policy="perplexity"), [])
    assert state(other) == ["fresh", "changed"]
    monkeypatch.setattr(precision, "MEASURED_RECORDS", 2)
    stats = decide.STAGE.run(other, lake, "tiny").stats
    measured, close = asked
    assert len(measured) == 2 and close == {"perplexity"} - measured
    assert stats["records_settled"] == len(measured | close)
    assert state(other) == ["fresh", "fresh"] and decide.STAGE.run(other, lake, "tiny").cached
    # What it measured by is in the table: the next one measures nothing.
    asked.clear()
    decide.STAGE.run(with_(settings, Selection(policy="r_ifd_only"), []), lake, "tiny")
    assert set().union(*asked) <= EXPECTED[6][2]


def test_bf16_decides_as_fp32_does_under_every_asked_policy(home, monkeypatch):
    monkeypatch.setattr(precision, "MEASURED_RECORDS", 2)
    arms = ["perplexity", "ifd_only", "r_ifd_only"]
    lake, exact = make_lake(home), make_lake(home / "exact")
    for of, dtype in ((lake, "bf16"), (exact, "fp32")):
        settings = with_(settings_for(dtype=dtype), Selection(), arms)
        scores.STAGE.run(settings, of, "tiny")
        stats = decide.STAGE.run(settings, of, "tiny").stats
        assert ("records_settled" in stats) == (dtype == "bf16")
    expected = decisions(exact)
    assert {k: v for k, v in decisions(lake).items() if k.split()[0] in ("selective", *arms)} == {
        k: v for k, v in expected.items() if k.split()[0] in ("selective", *arms)
    }
    assert settled(lake) and settled(exact) == {} and exact.partitions("settled_scores") == []
    for key, row in settled(lake).items():
        other = scores_of(exact)[key]
        assert row["dtype"] == "float32" and row["content_key"] == other["content_key"]
        assert row["sum_nll_response"] == pytest.approx(other["sum_nll_response"], rel=1e-5)


def test_settling_goes_on_where_it_was_stopped_and_forgets_what_no_longer_counts(home, monkeypatch):
    monkeypatch.setattr(pace, "_FIRST_CHARACTERS", 1)
    monkeypatch.setattr(pace.Pace, "learn", lambda *a: None)
    monkeypatch.setattr(precision, "MEASURED_RECORDS", 1)
    monkeypatch.setattr(Error, "also", lambda *a: Error(1, 9.0, 9.0, 9.0))  # everything is close
    lake, settings = make_lake(home), settings_for(dtype="bf16")
    scores.STAGE.run(settings, lake, "tiny")

    def interrupt(done: int, total: int, unit: str = "rows", **facts: object) -> None:
        if unit == "records" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decide.STAGE.run(settings, lake, "tiny", interrupt)
    assert len(settled(lake)) == 3 * 4 and decide.STAGE.state(settings, lake, "tiny").state == "missing"
    stats = decide.STAGE.run(settings, lake, "tiny").stats
    n = len(RECORDS) - 1  # one is exact since it was measured
    assert (stats["records_settled"], stats["records_settled_before"]) == (n - 3, 3)
    assert len(settled(lake)) == 4 * n and decide.STAGE.run(settings, lake, "tiny").cached
    # Rows that were lost are a reason to settle again.
    lake.commit(
        "settled_scores", [], fingerprint=Fingerprint.of(), code_version="1", partition="student=tiny", complete=False
    )
    assert decide.STAGE.run(settings, lake, "tiny").stats["records_settled"] == n
    # A record that is gone takes its rows along, and scores in fp32 need none.
    put_candidates(lake, [row for record in RECORDS[1:] for row in four(record)])
    scores.STAGE.run(settings, lake, "tiny")
    decide.STAGE.run(settings, lake, "tiny")
    assert {sample for sample, _ in settled(lake)} <= {sample_id(*record) for record in RECORDS[1:]}
    for stage in (scores.STAGE, decide.STAGE):
        stage.run(settings_for(dtype="fp32"), lake, "tiny")
    assert settled(lake) == {}


def test_scores_of_other_settings_are_not_settled(home, monkeypatch):
    monkeypatch.setattr(precision, "MEASURED_RECORDS", 2)
    lake = make_lake(home)
    scores.STAGE.run(settings_for(dtype="bf16"), lake, "tiny")
    with pytest.raises(StageError, match="made with other settings"):
        decide.STAGE.run(settings_for(dtype="bf16", template="alpaca"), lake, "tiny")


def test_the_shipped_preference_is_known_to_change_nothing_where_nothing_is_settled():
    """After a change of `final_scores.sql` that keeps this: put its new version into `settle.FINAL_SCORES`."""
    project = models.load()
    assert models.code_version(project.models[models.SCORES], project) == settle.FINAL_SCORES
