"""Two CPU processes (gloo) under `accelerate launch` train what one process trains."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from srt_assets.core.training import finished, stage
from tests.training_data import in_process, make_bench


def test_two_processes_have_the_curve_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    bench = make_bench(tmp_path / "home")
    one = stage.run(bench.settings, bench.lake, "tiny", launch=in_process)
    (alone,) = finished.all_of(bench.lake, "tiny")
    kept = alone.path.rename(tmp_path / "alone")
    assert one.manifest
    two = stage.run(bench.with_training(processes=2).settings, bench.lake, "tiny")
    (together,) = finished.all_of(bench.lake, "tiny")
    alone = finished.Finished(kept, alone.record)
    assert two.stats["steps"] == one.stats["steps"]
    for a, b in zip(alone.steps, together.steps, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
    for fact in ("eval_loss_before", "eval_loss_after", "eval_original_loss_after"):
        assert together.record[fact] == pytest.approx(alone.record[fact], rel=1e-4)
    ours, theirs = (load_file(f.path / "model.safetensors") for f in (together, alone))
    assert max(float((ours[k] - theirs[k]).abs().max()) for k in ours) < 1e-3
