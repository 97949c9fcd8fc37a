"""The sensor for new students: a whole checkpoint that lands in the watched folder becomes a student and is run.

So is a student that `srt students add` has registered. Nobody else asks for a student that nobody has run yet.
"""

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
        description="Registers every whole checkpoint in automation.watch, and requests a run for each new student.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from srt_assets.core.student import watch

        instance = context.instance
        seen = json.loads(context.cursor or "{}")
        whole, refused = watch.scan(Path(settings.automation.watch)) if settings.automation.watch else ({}, {})
        known = set(instance.get_dynamic_partitions(STUDENTS))
        cursor = json.dumps({slug: found.signature for slug, found in whole.items()}, sort_keys=True)
        # Taken only when two ticks saw the same files: a trainer may still be writing.
        settled = {slug: found for slug, found in whole.items() if seen.get(slug) == found.signature}
        # The files' signature in the key: the same files never run twice, changed files run again.
        run_keys = {slug: f"{slug}:{found.signature}" for slug, found in settled.items()}
        asked = {key for key in run_keys.values() if _run_of(instance, key)}
        due = {slug: key for slug, key in run_keys.items() if key not in asked}
        due |= {slug: f"{slug}:added" for slug in _added(settings, instance, known - set(whole))}
        if not due:
            why = _explain(instance, settings.automation.watch, whole, run_keys, refused)
            return dg.SensorResult(skip_reason=why, cursor=cursor)
        return dg.SensorResult(
            run_requests=[
                dg.RunRequest(run_key=key, partition_key=slug, tags={names.TAG_STUDENT: slug})
                for slug, key in sorted(due.items())
            ],
            dynamic_partitions_requests=[names.students.build_add_request(sorted(set(due) - known))],
            cursor=cursor,
        )

    return sensor


def _run_of(instance: dg.DagsterInstance, run_key: str) -> dg.DagsterRun | None:
    runs = instance.get_runs(dg.RunsFilter(tags={"dagster/run_key": run_key}), limit=1)
    return runs[0] if runs else None


def _added(settings: Settings, instance: dg.DagsterInstance, slugs: set[str]) -> list[str]:
    """Those of the students that were registered by command and that no run has had yet."""
    from srt_assets.core.lake import Lake
    from srt_assets.core.student import checkpoints

    slugs &= set(checkpoints.list_students(Lake(settings.home)))
    slugs -= set(instance.get_materialized_partitions(dg.AssetKey(names.STUDENT_CHECKPOINT)))
    return [slug for slug in slugs if not instance.get_runs(dg.RunsFilter(tags={"dagster/partition": slug}), limit=1)]


def _explain(
    instance: dg.DagsterInstance, folder: str, whole: dict, run_keys: dict[str, str], refused: dict[str, str]
) -> str:
    """Why nothing is requested: what is still arriving, what is no checkpoint, whose run failed and how to resume."""
    parts = [f"{slug}: waiting for a second look at the same files" for slug in whole if slug not in run_keys]
    for slug, key in run_keys.items():
        run = _run_of(instance, key)
        if run and run.status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED):
            parts.append(f"{slug}: run {run.run_id[:8]} failed; re-execute it here, or `srt run --student {slug}`")
    parts += [f"{name}: {why}" for name, why in refused.items()]
    if parts:
        return "; ".join(parts)
    if not folder:
        return "automation.watch is not set: no folder to look at; no student was added"
    return f"{len(whole)} checkpoints, none new" if whole else f"no checkpoint in {folder}"
