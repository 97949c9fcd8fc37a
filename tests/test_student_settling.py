"""Scores in low precision: their error is measured once, and losses that are no number are scored in fp32."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from student_lake import RECORDS, four, make_lake, put_candidates, scores_of, settings_for

from srt_assets.core.scoring import pace, precision
from srt_assets.core.scoring import stage as scores
from srt_assets.settings import Selection

torch.set_num_threads(1)


def in_fp32(lake) -> set[str]:
    return {sample for (sample, _), row in scores_of(lake).items() if row["dtype"] == "float32"}


def error_of(lake) -> precision.Error:
    return precision.of_stats(lake.manifest("student_scores", "student=tiny").stats)["bfloat16"]


def test_the_error_of_bf16_is_measured_and_stays(home, monkeypatch):
    monkeypatch.setattr(precision, "MEASURED_RECORDS", 3)
    lake = make_lake(home)
    stats = scores.STAGE.run(settings_for(dtype="bf16"), lake, "tiny").stats
    assert stats["low_precision_records"] == len(RECORDS) - 3 and stats["rescored_in_fp32"] == 3
    error = error_of(lake)
    assert error.records == 3 and min(error.log_ifd, error.log_r_ifd, error.loss_response_given_prompt) > 0
    assert precision.as_stats({"bfloat16": error}).items() <= stats.items()

    exact = make_lake(home / "exact")
    scores.STAGE.run(settings_for(), exact, "tiny")
    expected = scores_of(exact)
    measured = in_fp32(lake)
    assert len(measured) == 3
    for (sample, candidate), row in scores_of(lake).items():
        if sample in measured:
            assert row["sum_nll_response"] == pytest.approx(expected[sample, candidate]["sum_nll_response"], rel=1e-5)

    # More records are scored; how exact bf16 is, is known.
    more = [*RECORDS, ("Name a tree.", "", "An oak.")]
    put_candidates(lake, [row for record in more for row in four(record)])
    stats = scores.STAGE.run(settings_for(dtype="bf16"), lake, "tiny").stats
    assert stats["records_scored"] == 1 and "rescored_in_fp32" not in stats
    assert error_of(lake) == error and in_fp32(lake) == measured
    # It is no other template's error.
    other = scores.STAGE.run(settings_for(dtype="bf16", template="alpaca"), lake, "tiny")
    assert other.stats["rescored_in_fp32"] == 3 and error_of(lake) != error


def test_the_error_is_the_largest_change_of_a_value_or_a_difference(home):
    lake = make_lake(home)
    scores.STAGE.run(settings_for(), lake, "tiny")
    moves = {"original": 1.0, "reflected_instruction": -0.5, "reflected_response": 0.25, "reflected_both": 0.5}
    moved = " ".join(f"WHEN '{name}' THEN {by}" for name, by in moves.items())
    sql = (
        "SELECT * REPLACE (sum_nll_response_given_prompt + n_tokens_response_given_prompt * "
        f"CASE candidate {moved} END AS sum_nll_response_given_prompt) FROM student_scores"
    )
    with lake.connect() as con:
        error = precision.measured(con, sql, "SELECT * FROM student_scores")
        assert error.records == len(RECORDS) and error.log_r_ifd == 0
        assert error.log_ifd == pytest.approx(1.5) == error.loss_response_given_prompt
        one = f"SELECT * FROM ({sql}) WHERE candidate = 'reflected_instruction'"
        assert precision.measured(con, one, "SELECT * FROM student_scores").log_ifd == pytest.approx(0.5)
        assert precision.measured(con, f"{one} AND false", "SELECT * FROM student_scores") == precision.Error()


def test_measuring_says_how_far_it_is_and_keeps_what_is_measured(home, monkeypatch):
    monkeypatch.setattr(pace, "_FIRST_CHARACTERS", 1)
    monkeypatch.setattr(pace.Pace, "learn", lambda *a: None)
    monkeypatch.setattr(precision, "MEASURED_RECORDS", 5)
    lake = make_lake(home)
    seen: list[tuple[int, int]] = []

    def interrupt(done: int, total: int, unit: str = "rows", **facts: object) -> None:
        seen.append((done, total))
        if facts.get("dtype") == "float32" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scores.STAGE.run(settings_for(dtype="bf16"), lake, "tiny", interrupt)
    # Whoever throttles reports lets the last one through: it must come once.
    assert seen.count((len(RECORDS), len(RECORDS))) == 1 and seen[-1] == (3, 5)
    assert len(in_fp32(lake)) == 3 == error_of(lake).records
    before = error_of(lake)
    outcome = scores.STAGE.run(settings_for(dtype="bf16"), lake, "tiny")
    assert outcome.stats["candidates_scored"] == 0 and outcome.stats["rescored_in_fp32"] == 2
    assert error_of(lake).records == 5 and error_of(lake).also(before) == precision.Error(
        8, *(getattr(error_of(lake), name) for name in precision.MEASURES)
    ), "no smaller than what was measured before"
    assert len(scores_of(lake)) == 4 * len(RECORDS)


@pytest.mark.slow
def test_what_overflows_in_fp16_is_scored_in_fp32(home, monkeypatch):
    monkeypatch.setattr(precision, "MEASURED_RECORDS", 2)
    lake = make_lake(home)
    weights = load_file(home / "source" / "model.safetensors")
    for name in ("down_proj", "up_proj"):
        weights[f"model.layers.1.mlp.{name}.weight"] *= 2_000
    save_file(weights, home / "source" / "model.safetensors", metadata={"format": "pt"})
    outcome = scores.STAGE.run(settings_for(dtype="fp16"), lake, "tiny")
    assert {row["status_response_given_prompt"] for row in scores_of(lake).values()} == {"ok"}
    assert outcome.stats["rescored_in_fp32"] == len(RECORDS) and "low_precision_records" not in outcome.stats


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_policy_does_not_touch_scores(home, dtype):
    lake = make_lake(home)
    scores.STAGE.run(settings_for(dtype=dtype), lake, "tiny")
    other = settings_for(dtype=dtype).model_copy(update={"selection": Selection(policy="perplexity")})
    assert scores.STAGE.run(other, lake, "tiny").cached
