"""The bridge from an asset to its stage: progress and results in Dagster terms, nothing of the domain."""

import time

import dagster as dg

from srt_assets.core import rights
from srt_assets.core.lake import Lake
from srt_assets.core.outcome import Checked
from srt_assets.core.progress import Fact, Progress, terminal, throttled
from srt_assets.core.signals import not_lost
from srt_assets.core.sql.catalog import Publisher
from srt_assets.core.stage import Launcher, Stage
from srt_assets.core.tables import TABLES
from srt_assets.defs import names
from srt_assets.defs.failures import explained
from srt_assets.defs.metadata import describe_table, plain
from srt_assets.defs.one_student import student_of
from srt_assets.defs.orphans import end_with_run
from srt_assets.defs.places import place
from srt_assets.defs.retirement import note
from srt_assets.settings import Settings

# An observation costs the event log 17 ms and about 1 kB, a log line 8 ms.
LOG_EVERY_S = 5.0
OBSERVE_EVERY_S = 30.0


def run_stage(
    context: dg.AssetExecutionContext, stage: Stage, settings: Settings, launch: Launcher | None = None
) -> tuple[dg.MaterializeResult, list[Checked]]:
    """Run a stage and report it. However it fails, it is a Failure with cause and remedy, which nothing repeats."""
    started = time.monotonic()
    end_with_run()
    rights.keep(settings.home)
    publisher = Publisher()
    lake = Lake(settings.home, flushed=publisher.flushed)
    # Not a schedule, a sensor, or a retry.
    attended = names.TAG_COMMAND in context.run.tags
    renew = stage.asset in context.run.tags.get(names.TAG_RENEW, "").split(",")
    with explained(context):
        student = student_of(context)
        if stage.per_student:
            note(lake, context.instance, [student])
        report = reporter(context)
        try:
            with not_lost(KeyboardInterrupt, dg.DagsterExecutionInterruptedError), place(context):
                outcome = stage.run(settings, lake, student, report, renew, launch, attended)
        finally:
            publisher.ended(lake)
        if outcome.note:
            context.log.warning(outcome.note)
        rows = outcome.manifest.rows
        report(rows, rows, "rows", state="cached" if outcome.cached else "done")
        description = stage.describe(lake, student)
        checked = stage.check(lake, student)
    metadata = {
        **plain(outcome.stats),
        **describe_table(TABLES[stage.main], outcome.manifest, description, partitioned=stage.per_student),
        # Last: nothing that a stage counts may take their place.
        **({"note": outcome.note} if outcome.note else {}),
        "srt/cache": "hit" if outcome.cached else "miss",
        "seconds": round(time.monotonic() - started, 3),
    }
    version = dg.DataVersion(outcome.manifest.content_hash)
    return dg.MaterializeResult(metadata=metadata, data_version=version), checked


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
