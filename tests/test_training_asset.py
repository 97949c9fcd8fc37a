"""The asset: a process started through Dagster Pipes, its progress in the event log, its checks, its picture."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import dagster as dg
import pytest

from srt_assets.core.training import finished, job, stage, states
from srt_assets.defs.resources import LakeResource
from srt_assets.defs.training import ENDS_WELL, LEARNED, checks, finetuned_checkpoint, loss_png
from tests.training_data import Bench, in_process, make_bench


def materialize(bench: Bench, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    instance.add_dynamic_partitions("students", ["tiny"])
    return dg.materialize(
        [finetuned_checkpoint],
        instance=instance,
        partition_key="tiny",
        resources={"lake": LakeResource(bench.settings)},
        raise_on_error=False,
    )


def test_materialized_once_through_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    bench = make_bench(tmp_path / "home")
    with dg.instance_for_test() as instance:
        first = materialize(bench, instance)
        assert first.success
        (event,) = first.get_asset_materialization_events()
        metadata = event.materialization.metadata
        assert metadata["eval_loss_after"].value < metadata["eval_loss_before"].value
        assert metadata["steps"].value == 8
        assert str(metadata["loss_curve"].value).startswith("![loss by step](data:image/png;base64,")
        verdicts = {e.check_name: e.passed for e in first.get_asset_check_evaluations()}
        assert verdicts == {ENDS_WELL: True, LEARNED: True}
        # The child's own words came through Pipes, its steps through our progress.
        told = [e.user_message for e in instance.all_logs(first.run_id)]
        assert any("14 samples to train on, 2 held out" in t for t in told)
        assert any(t.startswith("8 of 8 steps, arm selective, loss") for t in told)

        second = materialize(bench, instance)
        (again,) = second.get_asset_materialization_events()
        assert again.materialization.metadata["srt/cache"].value == "hit"
        tag = "dagster/data_version"
        assert (again.materialization.tags or {})[tag] == (event.materialization.tags or {})[tag]
        assert len(finished.all_of(bench.lake, "tiny")) == 1


def test_terminate_saves_and_the_next_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    bench = make_bench(tmp_path / "home", max_steps=150)

    def run_until_interrupted() -> None:
        with dg.instance_for_test() as instance:
            materialize(bench, instance)

    # A step's process: Dagster terminates a run by interrupting it.
    step = multiprocessing.get_context("fork").Process(target=run_until_interrupted)
    step.start()
    while not list((bench.lake.home / "training").glob("tiny/*/live.json")) and step.is_alive():
        time.sleep(0.01)
    os.kill(step.pid or 0, signal.SIGINT)
    step.join(120)
    assert step.exitcode is not None
    (work,) = (bench.lake.home / "training" / "tiny").iterdir()
    done = len((work / job.CURVE).read_text().splitlines())
    state = states.last_state(work / "states")
    assert 0 < done < 150 and state is not None and state.name == f"checkpoint-{done}"
    stage.run(bench.settings, bench.lake, "tiny", launch=in_process)
    (made,) = finished.all_of(bench.lake, "tiny")
    assert [s["step"] for s in made.steps] == list(range(1, 151))


def test_a_refusal_is_one_message_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    bench = make_bench(tmp_path / "home", max_length=40)
    with dg.instance_for_test() as instance:
        failed = materialize(bench, instance)
        (event,) = failed.get_step_failure_events()
        failure = event.step_failure_data.user_failure_data
        assert failure is not None and "training.max_length" in str(failure.description)
        assert failure.metadata["srt/exit_code"].value == 2


def test_checks_see_what_is_wrong() -> None:
    finite, learned = checks({"eval_loss_before": 2.0, "eval_loss_after": 2.5}, {"a": [(1, 2.0), (2, float("nan"))]})
    assert not finite.passed and finite.metadata["steps_without_a_number"].value == "a step 2"
    assert not learned.passed and learned.severity == dg.AssetCheckSeverity.WARN
    finite, learned = checks({}, {"a": [(1, 2.0)]})
    assert finite.passed and not learned.passed and "no record" in str(learned.metadata["why"].value)


def test_the_picture_is_small() -> None:
    curves = {name: [(i, 5.0 / (i + 1)) for i in range(500)] for name in ("selective", "original")}
    assert len(loss_png(curves)) < 100_000
