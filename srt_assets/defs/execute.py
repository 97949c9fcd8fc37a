"""Runs the graph through Dagster in this process, for `srt run`."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg

# Dagster has no public API for the check results of one partition.
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from srt_assets.core.signals import not_lost
from srt_assets.defs import names
from srt_assets.defs.failures import EXIT_CODE
from srt_assets.defs.instance import process_tags

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class RunResult:
    """The result of a run. `exit_code` 0: done, 1: failed, 2: the user must change something."""

    run_id: str
    exit_code: int
    errors: tuple[str, ...] = ()


def materialize(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    assets: Sequence[str],
    student: str | None,
    verbose: bool = False,
    renew: Sequence[str] = (),
) -> RunResult:
    """Materialize assets (and their checks) in this process, recorded in the instance like any other run.

    Raises KeyboardInterrupt if the user stopped it; finished work is kept.
    """
    tags = {
        **process_tags(),
        names.TAG_COMMAND: "srt run",
        # If the command is killed, that is on purpose: the daemon must not retry the run.
        "dagster/max_retries": "0",
        **({names.TAG_STUDENT: student} if student else {}),
        **({names.TAG_RENEW: ",".join(renew)} if renew else {}),
    }
    try:
        with not_lost(KeyboardInterrupt, dg.DagsterExecutionInterruptedError), _copying_goes_on(instance):
            result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
                instance=instance,
                asset_selection=[dg.AssetKey(name) for name in assets],
                partition_key=student,
                run_config={} if verbose else QUIET,
                tags=tags,
                raise_on_error=False,
            )
    except dg.DagsterExecutionInterruptedError:
        raise KeyboardInterrupt from None
    if result.success:
        return RunResult(result.run_id, 0)
    codes, errors = [], []
    for event in result.get_step_failure_events():
        data = event.step_failure_data
        if failure := data.user_failure_data:
            code = failure.metadata.get(EXIT_CODE)
            codes.append(int(str(code.value)) if code else 1)
            errors.append(f"{event.step_key}: {failure.description}")
        elif data.error:
            codes.append(1)
            # The outer error only says that a step failed; the innermost cause says why.
            error = data.error
            while error.cause:
                error = error.cause
            if (error.cls_name or "").endswith("DagsterExecutionInterruptedError"):
                raise KeyboardInterrupt
            errors.append(f"{event.step_key}: {error.message.strip()}")
    return RunResult(result.run_id, 2 if codes and all(c == 2 for c in codes) else 1, tuple(errors))


@contextmanager
def _copying_goes_on(instance: dg.DagsterInstance) -> Iterator[None]:
    """Within the block, the processes that copy a step's output to the terminal start with SIGINT blocked.

    Dagster starts four of them per step, and they end with it. Ctrl-C on a terminal reaches them too, and two of them
    would print a stack trace.
    """
    manager = instance.compute_log_manager
    capture = manager.capture_logs

    @contextmanager
    def capture_logs(log_key: Sequence[str]) -> Iterator[Any]:
        with ExitStack() as until_the_end:
            # Children inherit the blocked signals. A signal for this process that arrives meanwhile is delivered later.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                captured = until_the_end.enter_context(capture(log_key))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield captured

    manager.capture_logs = capture_logs  # type: ignore[method-assign]
    try:
        yield
    finally:
        del manager.capture_logs


def is_recorded(instance: dg.DagsterInstance, asset: str, student: str | None) -> bool:
    """Whether this instance has a materialization of the asset. A new instance for an existing lake has none."""
    key = dg.AssetKey(asset)
    if student is None:
        return instance.get_latest_materialization_event(key) is not None
    return student in instance.get_materialized_partitions(key)


def has_passed(defs: dg.Definitions, instance: dg.DagsterInstance, asset: str, student: str | None) -> bool:
    """Whether all blocking checks of the asset passed in their newest result for this student."""
    graph = defs.resolve_asset_graph()
    checks = [key for key in graph.get_check_keys_for_assets({dg.AssetKey(asset)}) if graph.get(key).blocking]
    found = instance.event_log_storage.get_latest_asset_check_execution_by_key(checks, PartitionKeyFilter(key=student))
    return all(key in found and found[key].status is AssetCheckExecutionRecordStatus.SUCCEEDED for key in checks)
