"""The asset: a process started through Dagster Pipes, its progress in the event log, its checks, its picture."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import dagster as dg
import pytest

from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.training import finished, job, stage, states
from srt_assets.core.training.results import FINITE, LEARNED, SAVED, STEPS, TABLE, check
from srt_assets.defs.assets import asset_of
from srt_assets.defs.metadata import lines_png
from srt_assets.defs.resources import LakeResource
from tests.training_data import Bench, in_process, make_bench


def materialize(bench: Bench, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    instance.add_dynamic_partitions("students", ["tiny"])
    return dg.materialize(
        [asset_of(stage.STAGE)],
        instance=instance,
        partition_key="tiny",
        resources={"lake": LakeResource(bench.settings)},
        raise_on_error=False,
    )


@pytest.mark.slow
def test_materialized_once_through_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile_folder: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    bench = make_bench(tmp_path / "home")
    with dg.instance_for_test() as instance:
        first = materialize(bench, instance)
        assert first.success
        (event,) = first.get_asset_materialization_events()
        metadata = event.materialization.metadata
        assert metadata["eval_loss_after"].value < metadata["eval_loss_before"].value
        assert metadata["steps"].value == 8
        # The step's own time, which the training's is a part of.
        assert metadata["seconds"].value > metadata["training_seconds"].value > 0
        assert str(metadata["loss_curve"].value).startswith("![loss by step](data:image/png;base64,")
        verdicts = {e.check_name: e.passed for e in first.get_asset_check_evaluations()}
        assert verdicts == {FINITE: True, SAVED: True, LEARNED: True}
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


@pytest.mark.slow
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
    stage.STAGE.run(bench.settings, bench.lake, "tiny", launch=in_process)
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


def put_runs(lake: Lake, steps: list[tuple[int, float]], **run: object) -> None:
    partition = "student=tiny"
    rows = [{"student": "tiny", "run": "r", "step": step, "loss": loss} for step, loss in steps]
    runs = [{"student": "tiny", "run": "r", "arm": "a", "is_active_policy": True, **run}]
    for table, content in ((STEPS, rows), (TABLE, runs)):
        part = lake.write_part(table, content, partition)
        lake.commit(table, [part], fingerprint=Fingerprint.of(of=part), code_version="1", partition=partition)


def test_checks_see_what_is_wrong(lake: Lake) -> None:
    put_runs(lake, [(1, 2.0), (2, float("nan"))], eval_loss_before=2.0, eval_loss_after=2.5)
    finite, _, learned = check(lake, "tiny")
    assert not finite.passed and finite.facts["steps_without_a_number"] == "a step 2"
    assert not learned.passed and learned.facts == {"before": 2.0, "after": 2.5}
    put_runs(lake, [(1, 2.0)])
    finite, _, learned = check(lake, "tiny")
    assert finite.passed and not learned.passed and "no record" in str(learned.facts["why"])


def test_the_check_of_what_was_saved_knows_what_is_rounding(lake: Lake) -> None:
    def answer(**run: object):
        put_runs(lake, [(1, 2.0)], **run)
        return next(c for c in check(lake, "tiny") if c.name == SAVED)

    assert answer().passed and answer().facts == {"a": "not measured by the program that made it"}
    measured = {"compared_on": "2 held-out rows", "trained_loss": 2.0, "saved_loss": 2.0}
    for dtype, apart, passed in (
        ("fp32", 1e-4, True),
        ("fp32", 1.1e-4, False),
        ("bf16", 5e-3, True),
        ("bf16", 5.1e-3, False),
        ("fp32", float("nan"), False),
        ("fp32", None, False),
        ("fp8", 0.0, False),
    ):
        found = answer(**measured, saved_dtype=dtype, saved_difference=apart)
        assert found.passed == passed, (dtype, apart)
        assert "2 held-out rows" in str(found.facts["a"])
    assert not answer(**measured, saved_dtype="fp32", saved_difference=0.0, merge_difference=2e-4).passed


def test_the_picture_is_small() -> None:
    curves = {name: [(i, 5.0 / (i + 1)) for i in range(500)] for name in ("selective", "original")}
    assert len(lines_png("step", "loss", curves)) < 100_000
