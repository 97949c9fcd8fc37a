"""Scores of low precision: close decisions, and losses that are no number, are settled in fp32."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from student_lake import RECORDS, make_lake, scores_of, settings_for

from srt_assets.core.student import pace, scores
from srt_assets.settings import Selection

torch.set_num_threads(1)


def test_bf16_settles_close_decisions_in_fp32(home):
    lake = make_lake(home)
    outcome = scores.STAGE.run(settings_for(dtype="bf16"), lake, "tiny")
    assert outcome.stats["low_precision_records"] == len(RECORDS)
    assert outcome.stats["low_precision_error"] > 0
    assert outcome.stats["rescored_in_fp32"] == len(RECORDS)  # fewer than are measured: all
    exact = make_lake(home / "exact")
    scores.STAGE.run(settings_for(), exact, "tiny")
    expected = scores_of(exact)
    for key, row in scores_of(lake).items():
        assert row["dtype"] == "float32"
        assert row["sum_nll_response"] == pytest.approx(expected[key]["sum_nll_response"], rel=1e-5)


def test_bf16_says_how_far_settling_is_and_keeps_what_is_settled(home, monkeypatch):
    monkeypatch.setattr(pace, "_FIRST_CHARACTERS", 1)
    monkeypatch.setattr(pace.Pace, "learn", lambda *a: None)
    lake = make_lake(home)
    seen: list[tuple[int, int]] = []

    def interrupt(done: int, total: int, unit: str = "rows", **facts: object) -> None:
        seen.append((done, total))
        if facts.get("dtype") == "float32" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scores.STAGE.run(settings_for(dtype="bf16"), lake, "tiny", interrupt)
    # Whoever throttles reports lets the last one through: it must come once.
    assert seen.count((len(RECORDS), len(RECORDS))) == 1 and seen[-1] == (3, len(RECORDS))
    assert sum(row["dtype"] == "float32" for row in scores_of(lake).values()) == 3 * 4
    outcome = scores.STAGE.run(settings_for(dtype="bf16"), lake, "tiny")
    assert outcome.stats["candidates_scored"] == 0
    assert outcome.stats["rescored_in_fp32"] == len(RECORDS) - 3
    assert {row["dtype"] for row in scores_of(lake).values()} == {"float32"}
    assert len(scores_of(lake)) == 4 * len(RECORDS)


def test_what_overflows_in_fp16_is_scored_in_fp32(home, monkeypatch):
    from srt_assets.core.student import precision

    monkeypatch.setattr(precision, "MEASURED_RECORDS", 2)
    lake = make_lake(home)
    weights = load_file(home / "source" / "model.safetensors")
    for name in ("down_proj", "up_proj"):
        weights[f"model.layers.1.mlp.{name}.weight"] *= 2_000
    save_file(weights, home / "source" / "model.safetensors", metadata={"format": "pt"})
    scores.STAGE.run(settings_for(dtype="fp16"), lake, "tiny")
    assert {row["status_response_given_prompt"] for row in scores_of(lake).values()} == {"ok"}


def test_bf16_far_from_a_decision_stays(home, monkeypatch):
    from srt_assets.core.student import precision

    monkeypatch.setattr(precision, "MEASURED_RECORDS", 2)
    lake = make_lake(home)
    outcome = scores.STAGE.run(settings_for(dtype="bf16"), lake, "tiny")
    dtypes = {sample: row["dtype"] for (sample, _), row in scores_of(lake).items()}
    in_fp32 = sum(d == "float32" for d in dtypes.values())
    assert 2 <= in_fp32 == outcome.stats["rescored_in_fp32"] < len(RECORDS)


@pytest.mark.parametrize("policy", ["selective", "perplexity", "ifd_only"])
def test_bf16_decides_as_fp32_does_whatever_the_policy(home, monkeypatch, policy):
    """Error taken larger than any margin: every decision is close, all are settled, and a new policy settles anew."""
    from srt_assets.core.student import precision

    monkeypatch.setattr(precision, "MEASURED_RECORDS", 3)
    lake = make_lake(home)
    first = scores.STAGE.run(settings_for(dtype="bf16"), lake, "tiny")
    assert scores.STAGE.run(settings_for(dtype="bf16"), lake, "tiny").cached
    left = len(RECORDS) - first.stats["rescored_in_fp32"]
    assert left > 0
    settings = settings_for(dtype="bf16").model_copy(update={"selection": Selection(policy=policy)})
    second = scores.STAGE.run(settings, lake, "tiny")
    assert second.cached == (policy == "selective")
    if policy != "selective":
        assert second.stats["low_precision_records"] == left
        assert second.stats["candidates_scored"] == 0
        assert scores.STAGE.run(settings, lake, "tiny").cached


def test_a_policy_does_not_touch_scores_in_fp32(home):
    lake = make_lake(home)
    scores.STAGE.run(settings_for(), lake, "tiny")
    assert scores.STAGE.run(
        settings_for().model_copy(update={"selection": Selection(policy="perplexity")}), lake, "tiny"
    ).cached
