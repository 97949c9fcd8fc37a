"""The sensor on the watched folder: a whole checkpoint that lands there becomes a student and is run."""

import json
from pathlib import Path

import dagster as dg

from srt_assets.defs import names
from srt_assets.settings import Settings

STUDENTS = names.students.name or ""


def new_student_checkpoints(settings: Settings, tick_s: int) -> dg.SensorDefinition:
    """Reads names, sizes and headers only; running by itself if automation is enabled."""
    status = dg.DefaultSensorStatus.RUNNING if settings.automation.enabled else dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        name="new_student_checkpoints",
        job_name="student_side",
        minimum_interval_seconds=tick_s,
        default_status=status,
        description="Registers every whole checkpoint directory in automation.watch and requests its run.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        if not settings.automation.watch:
            return dg.SkipReason("automation.watch is not set: no folder to look at")
        from srt_assets.core.student import watch

        folder = Path(settings.automation.watch)
        seen = json.loads(context.cursor or "{}")
        whole, refused = watch.scan(folder)
        cursor = json.dumps({slug: found.signature for slug, found in whole.items()}, sort_keys=True)
        # Taken only when two ticks saw the same files: a trainer may still be writing.
        settled = {slug: found for slug, found in whole.items() if seen.get(slug) == found.signature}
        run_keys = {slug: f"{slug}:{found.signature}" for slug, found in settled.items()}
        asked = {key for key in run_keys.values() if _run_of(context.instance, key)}
        due = {slug: key for slug, key in sorted(run_keys.items()) if key not in asked}
        if not due:
            why = _explain(context.instance, folder, whole, run_keys, refused)
            return dg.SensorResult(skip_reason=why, cursor=cursor)
        known = set(context.instance.get_dynamic_partitions(STUDENTS))
        return dg.SensorResult(
            # The files' signature in the key: the same files never run twice, changed files run again.
            run_requests=[
                dg.RunRequest(run_key=key, partition_key=slug, tags={names.TAG_STUDENT: slug})
                for slug, key in due.items()
            ],
            dynamic_partitions_requests=[names.students.build_add_request(sorted(set(due) - known))],
            cursor=cursor,
        )

    return sensor


def _run_of(instance: dg.DagsterInstance, run_key: str) -> dg.DagsterRun | None:
    runs = instance.get_runs(dg.RunsFilter(tags={"dagster/run_key": run_key}), limit=1)
    return runs[0] if runs else None


def _explain(
    instance: dg.DagsterInstance, folder: Path, whole: dict, run_keys: dict[str, str], refused: dict[str, str]
) -> str:
    """Why nothing is requested: what is still arriving, what is no checkpoint, whose run failed and how to resume."""
    parts = [f"{slug}: waiting for a second look at the same files" for slug in whole if slug not in run_keys]
    for slug, key in run_keys.items():
        run = _run_of(instance, key)
        if run and run.status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED):
            parts.append(f"{slug}: run {run.run_id[:8]} failed; re-execute it here, or `srt run --student {slug}`")
    parts += [f"{name}: {why}" for name, why in refused.items()]
    return "; ".join(parts) or (f"{len(whole)} checkpoints, none new" if whole else f"no checkpoint in {folder}")
