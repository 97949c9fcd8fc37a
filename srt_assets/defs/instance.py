"""The Dagster instance of a home: its folder, its dagster.yaml, and ending runs whose process is gone."""

import contextlib
import logging
import os
import re
import socket
from pathlib import Path

import dagster as dg
import psutil

from srt_assets.core import rights
from srt_assets.core.errors import UserError
from srt_assets.core.files import is_there
from srt_assets.core.locks import file_lock
from srt_assets.defs import names
from srt_assets.home import READY, dagster_home
from srt_assets.settings import Settings

PID_TAG = "srt/pid"
PID_STARTED_TAG = "srt/pid_started"
HOST_OF_RUNS = "srt/host_of_runs"
BOOT_OF = "srt/boot_of/"
WITH_A_PROCESS = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

DAGSTER_YAML = """\
# Written once by srt-assets; yours to edit. Sized for one machine with the default SQLite storage.
telemetry: {enabled: false}
nux: {enabled: false}
concurrency:
  # One step at a time in each pool (teacher_api, device), over all runs.
  pools: {default_limit: 1, granularity: op}
  runs: {max_concurrent_runs: 2}
run_monitoring:
  enabled: true
  max_resume_run_attempts: 0     # more would keep Terminate from reaching the steps
  free_slots_after_run_end_seconds: 60
# A killed run is retried once. A run with a failed step is not, because it would fail again.
run_retries: {enabled: true, max_retries: 1, retry_on_asset_or_op_failure: false}
sensors: {use_threads: true, num_workers: 2}
"""

log = logging.getLogger(__name__)


def prepare_instance(settings: Settings) -> Path:
    """Make sure that DAGSTER_HOME is set, exists and has a dagster.yaml. A value set by the user wins."""
    home = dagster_home(settings)
    if unusable := not_for_dagster(home):
        raise unusable
    home.mkdir(parents=True, exist_ok=True)
    if not os.access(home, os.W_OK):  # checked here, because the databases' own error would be unclear
        raise UserError(f"{home} cannot be written to", "set DAGSTER_HOME or SRT_HOME to a folder of yours")
    os.environ["DAGSTER_HOME"] = str(home)
    config, ready = home / "dagster.yaml", home / READY
    is_there(config)  # checked here, because Dagster would block on a named pipe
    if not ready.exists():
        # Dagster creates its databases on first use, and fails if two processes do so at once.
        with file_lock(home / "srt_first_use.lock"):
            if not is_there(config):
                config.write_text(DAGSTER_YAML)
            with dg.DagsterInstance.get() as instance:
                instance.get_runs_count()
                instance.all_instigator_state()
            ready.touch()
    rights.share_databases(home)
    return home


def not_for_dagster(home: Path) -> UserError | None:
    """An error if Dagster cannot keep its databases in this folder, because it puts the path into a URL unescaped."""
    found = re.search(r"\?|%[0-9A-Fa-f]{2}", str(home))
    if found is None:
        return None
    remedy = f"rename the folder, or set DAGSTER_HOME or SRT_HOME to a folder without {found[0]}"
    return UserError(f"{home}: Dagster cannot keep its databases where the path has {found[0]!r}", remedy)


def process_tags() -> dict[str, str]:
    """Tags by which a later process can tell whether this one is still alive."""
    me = psutil.Process()
    return {names.TAG_HOST: socket.gethostname(), PID_TAG: str(me.pid), PID_STARTED_TAG: str(me.create_time())}


def fail_dead_runs(instance: dg.DagsterInstance, in_daemon: bool = False) -> list[str]:
    """Fail every run of this machine whose process is gone, free its pool slots, end its orphaned steps.

    A killed process cannot do this itself, and a slot it held would block the next run forever. `in_daemon`: runs are
    launched on this machine. On another machine or container with the same instance, their process ids would belong to
    other processes. Returns the ids of the failed runs.
    """
    host, cursors = socket.gethostname(), instance.daemon_cursor_storage
    known = cursors.get_cursor_values({HOST_OF_RUNS}).get(HOST_OF_RUNS)
    if in_daemon and known != host:
        cursors.set_cursor_values({HOST_OF_RUNS: host})
        known = host
    shift_s = _set_forward_s(instance)
    launched_here = known in (None, host) and isinstance(instance.run_launcher, dg.DefaultRunLauncher)
    failed = []
    for run in instance.get_runs(dg.RunsFilter(statuses=WITH_A_PROCESS)):
        processes = _processes(instance, run, launched_here, shift_s)
        if processes is None or (processes and _alive(*processes[0])):
            continue
        # Read the status again now that the process is gone: it may have finished since the first look.
        now = instance.get_run_by_id(run.run_id)
        if now is None or now.is_finished:
            continue
        for pid, started in processes[1:]:
            _end(pid, started)
        why = "the process of this run is gone (killed, or the machine was restarted)"
        if now.status == dg.DagsterRunStatus.CANCELING:  # the user stopped it, so it must not be retried
            instance.report_run_canceled(now, why)
        else:
            instance.report_run_failed(now, why)
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        failed.append(run.run_id)
        log.warning("run %s was left unfinished by a process that is gone; marked as ended", run.run_id[:8])
    # A slot, or a place in the queue for one, may outlive its run, if the process is killed before it releases it.
    storage = instance.event_log_storage
    for key in storage.get_concurrency_keys() if storage.supports_global_concurrency_limits else ():
        found = storage.get_concurrency_info(key)
        for run_id in {slot.run_id for slot in found.claimed_slots} | {step.run_id for step in found.pending_steps}:
            record = instance.get_run_by_id(run_id)
            if record is None or record.is_finished:
                storage.free_concurrency_slots_for_run(run_id)
    return failed


def _set_forward_s(instance: dg.DagsterInstance) -> float:
    """Seconds by which the wall clock was set forward since this machine booted, as seen by this instance.

    The system computes a process's start time from the boot time: after the clock is set forward, every process seems
    younger.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # systems without this file store the start times of processes themselves
        return 0.0
    key, now = BOOT_OF + socket.gethostname(), psutil.boot_time()
    before = instance.daemon_cursor_storage.get_cursor_values({key}).get(key, "")
    of, _, at = before.partition(" ")
    earliest = min(now, float(at)) if of == boot else now
    if before != f"{boot} {earliest}":
        instance.daemon_cursor_storage.set_cursor_values({key: f"{boot} {earliest}"})
    return now - earliest


def _processes(
    instance: dg.DagsterInstance, run: dg.DagsterRun, launched_here: bool, shift_s: float
) -> list[tuple[int, float]] | None:
    """(pid, latest possible start time) of the run's process, then of its steps; None if on another machine."""
    if names.TAG_HOST in run.tags:
        if run.tags[names.TAG_HOST] != socket.gethostname():
            return None
        return [(int(run.tags[PID_TAG]), float(run.tags[PID_STARTED_TAG]) + shift_s)]
    if not launched_here:
        return None
    found: list[tuple[int, float]] = []
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        pid = event.engine_event_data.metadata.get("pid") if event else None
        if pid is not None and str(pid.value).isdigit():
            found.append((int(str(pid.value)), entry.timestamp + shift_s))
    return found or None


def _alive(pid: int, started: float) -> bool:
    """Whether the process is still running. A later process with the same pid does not count."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= started + 1
    except psutil.NoSuchProcess:
        return False


def _end(pid: int, started: float) -> None:
    if pid == os.getpid() or not _alive(pid, started):
        return
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end by itself at any moment
        process = psutil.Process(pid)
        process.terminate()
        try:
            process.wait(timeout=5)
        except psutil.TimeoutExpired:
            process.kill()
