"""A stage that fails says so in `srt status` until it has succeeded, whichever stage and whatever the error."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import dagster as dg
import pytest
from student_lake import make_lake, settings_for

from srt_assets.cli import main
from srt_assets.core.lake import Lake
from srt_assets.core.records import raw
from srt_assets.core.scoring import stage as scores
from srt_assets.core.status import standings
from srt_assets.defs import failures, names
from srt_assets.defs.assets import asset_of
from srt_assets.defs.automation import failed_runs
from srt_assets.defs.failures import Failed, cause, explained
from srt_assets.defs.instance import DAGSTER_YAML
from srt_assets.defs.resources import LakeResource
from srt_assets.settings import Settings

NOT_CAPTURED = """\
compute_logs: {module: dagster._core.storage.noop_compute_log_manager, class: NoOpComputeLogManager}
"""


def state_of(settings: Settings, lake: Lake, asset: str, students: list[str]) -> tuple[str, str]:
    return next((s.state, s.why) for s in standings(settings, lake, students) if s.asset == asset)


def test_a_failed_stage_is_failed_until_it_succeeds(home: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text("[{")
    settings = Settings.model_validate(
        {"project": {"home": home}, "datasets": [{"name": "d", "path": str(data)}], "student": {"devices": "cpu"}}
    )
    resources = {"lake": LakeResource(settings)}
    assert not dg.materialize([asset_of(raw.STAGE)], resources=resources, raise_on_error=False).success
    state, why = state_of(settings, Lake(home), "raw_dataset", [])
    assert state == "failed" and "data.json" in why
    data.write_text('[{"instruction": "Name a tree.", "input": "", "output": "Oak."}]')
    assert dg.materialize([asset_of(raw.STAGE)], resources=resources).success
    assert state_of(settings, Lake(home), "raw_dataset", []) == ("fresh", "")


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), MemoryError("no more")])
def test_an_error_nobody_foresaw_counts_too(home: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: object) -> None:
        raise error

    lake = make_lake(home)
    settings = settings_for().model_copy(update={"project": Settings().project.model_copy(update={"home": home})})
    monkeypatch.setattr(scores.StudentScores, "make", fails)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(names.students.name or "", ["tiny"])
        done = dg.materialize(
            [
                dg.AssetSpec("reflected_responses"),
                dg.AssetSpec(names.STUDENT_CHECKPOINT, partitions_def=names.students),
                asset_of(scores.STAGE),
            ],
            partition_key="tiny",
            instance=instance,
            resources={"lake": LakeResource(settings)},
            raise_on_error=False,
        )
        logged = instance.all_logs(done.run_id)
    assert not done.success
    state, why = state_of(settings, lake, "student_scores", ["tiny"])
    assert state == "failed" and str(error) in why
    [event] = done.get_step_failure_events()
    told = event.step_failure_data.user_failure_data.description
    assert told == cause(event) and str(error) in told.splitlines()[0] and "\n  -> " in told
    assert ("a fault of srt-assets" in told) is (type(error) is RuntimeError)
    # Where it was is in the log, at level debug; people are shown no trace, not even of Dagster's own lines.
    shown = event.step_failure_data.error
    assert shown.message == f"Failed: {told}\n" and not shown.stack and shown.cause is None
    traces = [entry for entry in logged if "in fails" in entry.user_message]
    assert traces and {entry.level for entry in traces} == {logging.DEBUG}


def test_the_terminal_shows_where_it_was_only_when_asked(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise LookupError("no such key\nin a second line")

    monkeypatch.setattr(raw.RawDataset, "make", fails)
    (tmp_path / "srt.toml").write_text('[[datasets]]\nname = "d"\npath = "d.json"\n')
    (tmp_path / "d.json").write_text('[{"instruction": "Name a tree.", "input": "", "output": "Oak."}]')
    monkeypatch.setenv("SRT_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    # Captured output reaches the terminal through another process, when it pleases.
    (home / "dagster").mkdir(parents=True)
    (home / "dagster" / "dagster.yaml").write_text(f"{DAGSTER_YAML}{NOT_CAPTURED}")

    def srt(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["srt", "run", "raw_dataset", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        return "".join(capfd.readouterr())

    told = srt()
    assert "error raw_dataset: LookupError: no such key in a second line (an unexpected error" in told
    assert "-> report it" in told and "Traceback" not in told and "in fails" not in told
    assert "in fails" in srt("--verbose")


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), dg.DagsterExecutionInterruptedError()])
def test_a_stopped_step_in_a_process_of_its_own_ends_with_one_sentence(
    stop: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(type(stop)), explained(dg.build_asset_context()):
        raise stop
    monkeypatch.setattr(failures, "parent_process", lambda: "the executor")
    with pytest.raises(Failed, match="stopped on request; what was done is kept"), explained(dg.build_asset_context()):
        raise stop


def test_the_note_of_a_failed_run_says_what_to_do_and_no_more(home: Path) -> None:
    @dg.op
    def fails() -> None:
        raise Failed("row 7 has no instruction\n  -> correct it", 2)

    @dg.job
    def job() -> None:
        fails()

    settings = Settings.model_validate({"project": {"home": home}})
    with dg.instance_for_test() as instance:
        done = job.execute_in_process(instance=instance, raise_on_error=False)
        context = dg.build_run_status_sensor_context(
            "failed_runs",
            dagster_event=done.get_run_failure_event(),
            dagster_instance=instance,
            dagster_run=done.dagster_run,
        ).for_run_failure()
        failed_runs(settings, dg.DefaultSensorStatus.RUNNING, 30)(context)
    note = (home / "failures" / f"{done.run_id}.md").read_text()
    assert "    row 7 has no instruction\n      -> correct it" in note and "srt run" in note and "File " not in note
