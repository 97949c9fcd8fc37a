"""The asset `pipeline_status`, the table of `srt status` in the UI, and the sensor that renews it after other runs."""

import time
from pathlib import Path

import dagster as dg

from srt_assets.core.hashing import digest
from srt_assets.core.stage import STATES
from srt_assets.defs import names
from srt_assets.defs.resources import LakeResource
from srt_assets.defs.retirement import settle
from srt_assets.text import in_markdown

FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
LOOKED_AT = "looked_at"
RECENT = 100
SKEW_S = 60.0
LONGEST_WHY = 400
UNFINISHED = [s for s in dg.DagsterRunStatus if s not in FINISHED and s.value != "MANAGED"]


@dg.asset(
    name=names.PIPELINE_STATUS,
    deps=list(names.LAST),
    group_name=names.GROUP_STATUS,
    kinds={"markdown"},
    code_version="1",
)
def pipeline_status(context: dg.AssetExecutionContext, lake: dg.ResourceParam[LakeResource]) -> dg.MaterializeResult:
    """Every asset by student: fresh, changed (and why), missing, failed or damaged; SQL models that do not compile."""
    from srt_assets.core.sql.faults import faults
    from srt_assets.core.status import standings
    from srt_assets.core.students.checkpoints import list_students

    store, looked_at = lake.open(), time.time()
    settle(lake.settings(), store, context.instance)
    found = standings(lake.settings(), store, list_students(store))
    broken = [error.message for error in faults()]
    rows = ["| asset | student | state |", "|---|---|---|"]
    rows += [f"| {s.asset} | {s.student or '-'} | {s.state} |" for s in found]
    rows += ["| SQL model | - | does not compile |" for _ in broken]
    # Not in the table, because the page cuts cells wider than a column and hides texts longer than 1,000 characters.
    reasons = [(f"{s.asset} of {s.student}" if s.student else s.asset, s.why) for s in found if s.why]
    reasons += [("SQL model", message) for message in broken]
    why = "\n".join(f"- {what}: {_quoted(reason, store.home)}" for what, reason in reasons)
    counts = {state: sum(s.state == state for s in found) for state in STATES}
    version = digest(standings=[[s.asset, s.student, s.state, s.why] for s in found], broken=broken)
    return dg.MaterializeResult(
        metadata={
            "status": dg.MetadataValue.md("\n".join(rows)),
            **({"why": dg.MetadataValue.md(why)} if why else {}),
            LOOKED_AT: dg.MetadataValue.timestamp(looked_at),
            **counts,
            "sql_models_broken": len(broken),
        },
        data_version=dg.DataVersion(version),
    )


def _quoted(why: str, home: Path) -> str:
    """A reason as one line without Markdown, because it may quote file names or a stack trace.

    Paths in the home are shortened to relative ones.
    """
    text = " ".join(why.replace(f"{home}/", "").split())
    if len(text) > LONGEST_WHY:
        return f"{in_markdown(text[:LONGEST_WHY])} … (srt status says it all)"
    return in_markdown(text)


def status_after_runs(status: dg.DefaultSensorStatus, tick_s: int) -> dg.SensorDefinition:
    """A sensor that renews the status after runs that failed before that step, or do not include it."""

    @dg.sensor(
        name="status_after_runs",
        target=dg.AssetSelection.assets(names.PIPELINE_STATUS),
        minimum_interval_seconds=tick_s,
        default_status=status,
        description="Requests pipeline_status when a run has ended since it was made, and no run is going on.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        instance = context.instance
        if instance.get_runs(dg.RunsFilter(statuses=UNFINISHED), limit=1):
            return dg.SkipReason("a run is going on")
        made = instance.get_latest_materialization_event(dg.AssetKey(names.PIPELINE_STATUS))
        # A time in the future means that the clock was set back since, so it is ignored.
        latest = time.time() + SKEW_S
        since = looked_at if made and (looked_at := _looked_at(made)) <= latest else 0.0
        # Compare the runs' end times: the storage's own times have no time zone, and change with a run's tags.
        recent = instance.get_run_records(dg.RunsFilter(statuses=FINISHED), limit=RECENT, order_by="update_timestamp")
        ours = {"dagster/sensor_name": "status_after_runs"}.items()
        news = [
            (record.end_time or 0.0, record.dagster_run.run_id)
            for record in recent
            if (record.end_time or 0.0) >= since
            and not (made and record.dagster_run.run_id == made.run_id)
            and not ours <= record.dagster_run.tags.items()
        ]
        if not news:
            return dg.SkipReason("no run has ended since it was made")
        return dg.RunRequest(run_key=max(news, key=lambda ended: (ended[0] <= latest, *ended))[1])

    return sensor


def _looked_at(made: dg.EventLogEntry) -> float:
    """When the status was read from the lake. A run that ended later is not in it, even if it was written later."""
    entry = made.asset_materialization and made.asset_materialization.metadata.get(LOOKED_AT)
    return float(str(entry.value)) if entry else made.timestamp
