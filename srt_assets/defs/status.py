"""The asset `pipeline_status`, the table of `srt status` in the UI, and the sensor that renews it after other runs."""

from datetime import UTC, datetime

import dagster as dg

from srt_assets.core.hashing import fingerprint
from srt_assets.defs import names
from srt_assets.defs.resources import LakeResource

FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
UNFINISHED = [s for s in dg.DagsterRunStatus if s not in FINISHED and s.value != "MANAGED"]


@dg.asset(
    name=names.PIPELINE_STATUS,
    deps=[names.REFLECTED_RESPONSES, names.FINETUNED_CHECKPOINT],
    group_name=names.GROUP_STATUS,
    kinds={"markdown"},
    code_version="1",
)
def pipeline_status(context: dg.AssetExecutionContext, lake: dg.ResourceParam[LakeResource]) -> dg.MaterializeResult:
    """Every asset by student: fresh, changed (and why), missing or failed."""
    from srt_assets.core.status import standings
    from srt_assets.core.student.checkpoints import list_students

    store = lake.open()
    found = standings(lake.settings(), store, list_students(store))
    rows = ["| asset | student | state | why |", "|---|---|---|---|"]
    # Reasons may quote names of files and models: nothing in them is markup.
    rows += [
        f"| {s.asset} | {s.student or '-'} | {s.state} | `{s.why.replace('`', '').replace('|', '/')}` |" for s in found
    ]
    counts = {state: sum(s.state == state for s in found) for state in ("fresh", "changed", "missing", "failed")}
    version = fingerprint(standings=[[s.asset, s.student, s.state, s.why] for s in found])
    return dg.MaterializeResult(
        metadata={"status": dg.MetadataValue.md("\n".join(rows)), **counts}, data_version=dg.DataVersion(version)
    )


def status_after_runs(status: dg.DefaultSensorStatus, tick_s: int) -> dg.SensorDefinition:
    """A run that failed does not reach its last step, and some runs do not have it: the table is renewed after them."""

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
        since = datetime.fromtimestamp(made.timestamp, UTC) if made else None
        ended = instance.get_runs(dg.RunsFilter(statuses=FINISHED, updated_after=since))
        ours = {"dagster/sensor_name": "status_after_runs"}.items()
        news = [r for r in ended if not (made and r.run_id == made.run_id) and not ours <= r.tags.items()]
        if not news:
            return dg.SkipReason("no run has ended since it was made")
        return dg.RunRequest(run_key=news[0].run_id)

    return sensor
