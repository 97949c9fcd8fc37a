"""The Dagster instance of a home: its dagster.yaml, and runs whose process was killed with -9."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import psutil
import pytest
import yaml
from dagster._core.events import EngineEventData  # exported nowhere

from srt_assets.core.errors import UserError
from srt_assets.defs.execute import materialize
from srt_assets.defs.instance import fail_dead_runs, prepare_instance, process_tags
from srt_assets.settings import Project, Settings

# A run that takes a slot of the pool `device`, says so, and never ends by itself.
SLEEPER = """
import pathlib, sys, time
import dagster as dg
from srt_assets.defs.execute import materialize

@dg.asset(pool="device")
def slow():
    pathlib.Path(sys.argv[1]).write_text("in the pool")
    time.sleep(float(sys.argv[2]))

if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance:
        print(materialize(dg.Definitions(assets=[slow]), instance, ["slow"], None))
"""


@dg.asset
def nothing() -> None: ...


@pytest.fixture
def dagster_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return prepare_instance(Settings(project=Project(home=home)))


def test_the_instance_lives_in_the_home_and_is_quiet(dagster_home: Path, home: Path) -> None:
    assert dagster_home == home / "dagster" == Path(os.environ["DAGSTER_HOME"])
    config = yaml.safe_load((dagster_home / "dagster.yaml").read_text())
    assert config["telemetry"] == {"enabled": False}
    with dg.DagsterInstance.get() as instance:
        assert instance.global_op_concurrency_default_limit == 1


def test_a_home_that_is_set_wins(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "mine"))
    assert prepare_instance(Settings(project=Project(home=home))) == tmp_path / "mine"


def test_a_home_of_somebody_else_is_one_clear_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written to"):
        prepare_instance(Settings(project=Project(home=home)))


def start_sleeper(tmp_path: Path, seconds: float) -> subprocess.Popen:
    script, mark = tmp_path / "sleeper.py", tmp_path / "mark"
    script.write_text(SLEEPER)
    mark.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, str(script), str(mark), str(seconds)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not mark.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_a_killed_run_is_failed_and_its_slot_freed(dagster_home: Path, tmp_path: Path) -> None:
    process = start_sleeper(tmp_path, seconds=600)
    with dg.DagsterInstance.get() as instance:
        assert fail_dead_runs(instance) == [], "a living run must be left alone"
        process.kill()
        process.wait()
        held = instance.event_log_storage.get_concurrency_info("device")
        assert held.active_slot_count == 1

        [dead] = fail_dead_runs(instance)

        run = instance.get_run_by_id(dead)
        assert run is not None and run.status == dg.DagsterRunStatus.FAILURE
        assert instance.event_log_storage.get_concurrency_info("device").active_slot_count == 0

        @dg.asset(pool="device")
        def quick() -> None: ...

        result = materialize(dg.Definitions(assets=[quick]), instance, ["quick"], None)
        assert result.exit_code == 0


def test_a_pid_taken_by_another_process_does_not_pass_for_the_run(dagster_home: Path) -> None:
    with dg.DagsterInstance.get() as instance:
        tags = {"srt/host": socket.gethostname(), "srt/pid": str(os.getpid()), "srt/pid_started": "1.0"}
        job = dg.Definitions(assets=[nothing]).resolve_implicit_global_asset_job_def()
        run = instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
        assert fail_dead_runs(instance) == [run.run_id]


def a_run(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, **tags: str) -> dg.DagsterRun:
    job = dg.Definitions(assets=[nothing]).resolve_implicit_global_asset_job_def()
    return instance.create_run_for_job(job, tags=tags, status=status)


DEAD = {"srt/host": socket.gethostname(), "srt/pid": str(os.getpid()), "srt/pid_started": "1.0"}


def test_a_run_that_was_being_stopped_is_canceled_not_failed(dagster_home: Path) -> None:
    with dg.DagsterInstance.get() as instance:
        run = a_run(instance, dg.DagsterRunStatus.CANCELING, **DEAD)
        assert fail_dead_runs(instance) == [run.run_id]
        ended = instance.get_run_by_id(run.run_id)
        assert ended and ended.status == dg.DagsterRunStatus.CANCELED, "failed, it would be taken up again"


def test_a_run_that_ends_while_we_look_keeps_its_end(dagster_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dg.DagsterInstance.get() as instance:
        run = a_run(instance, dg.DagsterRunStatus.STARTED, **DEAD)

        def ends_now(pid: int, started: float) -> bool:
            instance.report_dagster_event(dg.DagsterEvent("PIPELINE_SUCCESS", run.job_name), run_id=run.run_id)
            return False

        monkeypatch.setattr("srt_assets.defs.instance._alive", ends_now)
        assert fail_dead_runs(instance) == []
        ended = instance.get_run_by_id(run.run_id)
        assert ended and ended.is_success


def test_process_numbers_of_another_machine_mean_nobody_here(
    dagster_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon works elsewhere on the same instance: its run lives, and its step's number is a stranger's here."""
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with dg.DagsterInstance.get() as instance:
            with monkeypatch.context() as there:
                there.setattr(socket, "gethostname", lambda: "where-the-daemon-is")
                assert fail_dead_runs(instance, in_daemon=True) == []
            run = a_run(instance, dg.DagsterRunStatus.STARTED)
            for pid in (2**22 + 1, stranger.pid):
                instance.report_engine_event("Started process", run, EngineEventData.in_process(pid))
            assert fail_dead_runs(instance) == [] and stranger.poll() is None
            assert fail_dead_runs(instance, in_daemon=True) == [run.run_id], "the daemon has moved here"
    finally:
        stranger.kill()
        stranger.wait()


def test_runs_of_other_machines_are_left_alone(dagster_home: Path) -> None:
    with dg.DagsterInstance.get() as instance:
        tags = {"srt/host": "another-machine", "srt/pid": "1", "srt/pid_started": "1.0"}
        job = dg.Definitions(assets=[nothing]).resolve_implicit_global_asset_job_def()
        instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
        assert fail_dead_runs(instance) == []


def test_a_clock_that_is_set_forward_makes_no_living_run_dead(
    dagster_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system then says that every process, and the machine, were started so much later."""
    boot_time, create_time = psutil.boot_time, psutil.Process.create_time
    with dg.DagsterInstance.get() as instance:
        assert fail_dead_runs(instance) == []
        ours = a_run(instance, dg.DagsterRunStatus.STARTED, **process_tags())
        launched = a_run(instance, dg.DagsterRunStatus.STARTED)
        instance.report_engine_event("Started process", launched, EngineEventData.in_process(os.getpid()))
        a_run(instance, dg.DagsterRunStatus.STARTED, **{**process_tags(), "srt/pid": str(2**22 + 1)})
        monkeypatch.setattr(psutil, "boot_time", lambda: boot_time() + 86_400)
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + 86_400)
        dead = fail_dead_runs(instance)
        assert len(dead) == 1 and not {ours.run_id, launched.run_id} & {*dead}
