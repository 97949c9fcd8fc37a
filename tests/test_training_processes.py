"""Two CPU processes (gloo) under `accelerate launch` train what one trains, replicated (DDP) or sharded (FSDP)."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from srt_assets.core.errors import StageError
from srt_assets.core.training import finished, job, launch, stage, states
from tests.training_data import Bench, in_process, make_bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return make_bench(tmp_path / "home")


@pytest.fixture
def alone(bench: Bench, tmp_path: Path) -> finished.Finished:
    """The same training in one process."""
    stage.STAGE.run(bench.settings, bench.lake, "tiny", launch=in_process)
    (made,) = finished.all_of(bench.lake, "tiny")
    return finished.Finished(made.path.rename(tmp_path / "alone"), made.record)


def assert_equal(one: finished.Finished, two: finished.Finished) -> None:
    assert [s["step"] for s in two.steps] == [s["step"] for s in one.steps]
    for a, b in zip(one.steps, two.steps, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
    for fact in ("eval_loss_before", "eval_loss_after", "eval_original_loss_after"):
        assert two.record[fact] == pytest.approx(one.record[fact], rel=1e-4)
    assert two.record["saved_difference"] <= 1e-4
    ours, theirs = (load_file(f.path / "model.safetensors") for f in (two, one))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[k] - theirs[k]).abs().max()) for k in ours) < 1e-3


@pytest.mark.slow
def test_two_processes_have_the_curve_of_one(bench: Bench, alone: finished.Finished, hostile_folder: Path) -> None:
    stage.STAGE.run(bench.with_training(processes=2).settings, bench.lake, "tiny")
    (together,) = finished.all_of(bench.lake, "tiny")
    assert together.record["processes"] == 2 and not together.record["sharded"]
    assert_equal(alone, together)


@pytest.mark.slow
def test_sharded_processes_have_it_too_and_can_be_interrupted(bench: Bench, alone: finished.Finished) -> None:
    bench.with_training(processes=2, sharding="always")

    def on_cpu(command: Sequence[str]) -> list[str]:
        return ["tests.fsdp_on_cpu" if word == launch.MODULE else word for word in command]

    def kill_soon(command: Sequence[str], env: Mapping[str, str]) -> int:
        task = replace(job.Job.read(Path(command[-2])), save_every_s=0.0)
        task.write()
        process = subprocess.Popen(on_cpu(command), env={**os.environ, **env}, stderr=subprocess.DEVNULL)
        while states.last_state(task.states) is None and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        return process.wait()

    with pytest.raises(StageError, match="continues from the last saved step"):
        stage.STAGE.run(bench.settings, bench.lake, "tiny", launch=kill_soon)
    stage.STAGE.run(bench.settings, bench.lake, "tiny", launch=lambda c, env: launch.plain(on_cpu(c), env))
    (together,) = finished.all_of(bench.lake, "tiny")
    assert together.record["sharded"]
    assert_equal(alone, together)
