"""The bridge from an asset to its stage: progress, failures and results in Dagster terms, nothing of the domain."""

import time
from collections.abc import Callable

import dagster as dg

from srt_assets.core.errors import StageError, UserError, disk_full
from srt_assets.core.outcome import Description, Outcome
from srt_assets.core.progress import Fact, Progress, terminal, throttled
from srt_assets.core.status import remember_failure
from srt_assets.core.tables import TABLES
from srt_assets.defs.metadata import describe_table, plain
from srt_assets.defs.orphans import end_with_run
from srt_assets.defs.places import place

# An observation costs the event log 17 ms and about 1 kB, a log line 8 ms.
LOG_EVERY_S = 5.0
OBSERVE_EVERY_S = 30.0
EXIT_CODE = "srt/exit_code"


def run_stage(
    context: dg.AssetExecutionContext,
    stage: Callable[[Progress], Outcome],
    describe: Callable[[], Description],
) -> dg.MaterializeResult:
    """Run a stage and report it. A UserError or StageError becomes a Failure that no retry policy repeats."""
    started = time.monotonic()
    end_with_run()
    with explained():
        report = reporter(context)
        try:
            with place(context):
                outcome = stage(report)
        except Exception as error:
            remember(context, error)
            raise
        rows = outcome.manifest.rows
        report(rows, rows, "rows", state="cached" if outcome.cached else "done")
        description = describe()
    table = TABLES[outcome.manifest.table]
    metadata = {
        "srt/cache": "hit" if outcome.cached else "miss",
        "seconds": round(time.monotonic() - started, 3),
        **plain(outcome.stats),
        **describe_table(table, outcome.manifest, description, partitioned=context.has_partition_key),
    }
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(outcome.manifest.content_hash))


def remember(context: dg.AssetExecutionContext, error: Exception) -> None:
    """Put the failure down in the lake, where `srt status` finds it until the stage has succeeded."""
    lake = context.resources.lake
    message = error.message if isinstance(error, UserError | StageError) else f"{type(error).__name__}: {error}"
    student = context.partition_key if context.has_partition_key else ""
    remember_failure(lake.settings(), lake.open(), context.asset_key.to_user_string(), student, message)


class explained:
    """Turn errors that carry a remedy, and a full disk, into failures with that text instead of a stack trace."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error = disk_full(error) or error
        if isinstance(error, UserError | StageError):
            raise dg.Failure(
                description=str(error), metadata={EXIT_CODE: error.exit_code}, allow_retries=False
            ) from error


def reporter(context: dg.AssetExecutionContext) -> Progress:
    """Progress as log lines, as observations in the asset's timeline, and on the terminal if a command shows one."""

    def log_line(done: int, total: int, unit: str = "rows", **facts: Fact) -> None:
        share = f" of {total}" if total else ""
        more = "".join(f", {k} {v:.4g}" if isinstance(v, float) else f", {k} {v}" for k, v in facts.items())
        context.log.info(f"{done}{share} {unit}{more}")

    def observe(done: int, total: int, unit: str = "rows", **facts: Fact) -> None:
        if 0 < done < total:
            metadata = {f"{unit}_done": done, f"{unit}_total": total, **plain(facts)}
            partition = context.partition_key if context.has_partition_key else None
            context.log_event(dg.AssetObservation(context.asset_key, partition=partition, metadata=metadata))

    listeners = [throttled(log_line, LOG_EVERY_S), throttled(observe, OBSERVE_EVERY_S)]
    if bar := terminal(context.asset_key.to_user_string()):
        listeners.append(bar)

    def report(done: int, total: int, unit: str = "rows", **facts: Fact) -> None:
        for listener in listeners:
            listener(done, total, unit, **facts)

    return report
