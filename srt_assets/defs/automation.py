"""Jobs by name, and what runs by itself: the sensor on new checkpoints, the nightly schedule, dead runs."""

import json
from pathlib import Path

import dagster as dg

from srt_assets.defs import names
from srt_assets.defs.instance import fail_dead_runs
from srt_assets.settings import Settings

STUDENTS = names.students.name or ""


def jobs() -> list:
    """`teacher_side` (no partition), `student_side` and `everything` (one student a run)."""
    teacher = dg.AssetSelection.assets(*names.TEACHER_SIDE)
    student = dg.AssetSelection.assets(*names.STUDENT_SIDE)
    return [
        dg.define_asset_job("teacher_side", teacher, description="Read the data and ask the teacher; no student."),
        dg.define_asset_job("student_side", student, description="Score, select and finetune one student."),
        dg.define_asset_job(
            "everything", teacher | student, description="The main job: from raw files to a checkpoint."
        ),
    ]


def sensors(settings: Settings) -> list[dg.SensorDefinition]:
    return [dead_runs, new_student_checkpoints(settings)]


def schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    return [nightly(settings)]


@dg.sensor(minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
def dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Fails runs whose process is gone and frees the pool slots they held, so that the next run can start."""
    failed = fail_dead_runs(context.instance)
    return dg.SkipReason(f"marked as failed: {', '.join(failed)}" if failed else "no dead run")


def new_student_checkpoints(settings: Settings) -> dg.SensorDefinition:
    """The sensor on the watched folder, running if automation is enabled."""
    status = dg.DefaultSensorStatus.RUNNING if settings.automation.enabled else dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        name="new_student_checkpoints",
        job_name="everything",
        minimum_interval_seconds=60,
        default_status=status,
        description="Registers every complete checkpoint directory in automation.watch and requests its run.",
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
        if not settled:
            waiting = [f"{slug}: waiting for a second look" for slug in whole]
            waiting += [f"{name}: {why}" for name, why in refused.items()]
            why_not = "; ".join(waiting) or f"no checkpoint directory in {folder}"
            return dg.SensorResult(skip_reason=why_not, cursor=cursor)
        known = set(context.instance.get_dynamic_partitions(STUDENTS))
        requests = [
            dg.RunRequest(
                # Content in the key: the same files never run twice, changed files run again.
                run_key=f"{slug}:{found.signature}",
                partition_key=slug,
                tags={names.TAG_STUDENT: slug},
            )
            for slug, found in sorted(settled.items())
        ]
        return dg.SensorResult(
            run_requests=requests,
            dynamic_partitions_requests=[names.students.build_add_request(sorted(set(settled) - known))],
            cursor=cursor,
        )

    return sensor


def nightly(settings: Settings) -> dg.ScheduleDefinition:
    """The schedule that brings every student up to date, running if automation is enabled."""
    on = settings.automation.enabled
    status = dg.DefaultScheduleStatus.RUNNING if on else dg.DefaultScheduleStatus.STOPPED

    @dg.schedule(
        name="nightly",
        job_name="everything",
        cron_schedule=settings.automation.nightly,
        default_status=status,
        description="Requests a run for every student with an asset that is changed, missing or failed.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        from srt_assets.core.lake import Lake
        from srt_assets.core.status import standings

        students = list(context.instance.get_dynamic_partitions(STUDENTS))
        found = standings(settings, Lake(settings.home), students)
        shared = any(s.student is None and s.state != "fresh" for s in found)
        due = [k for k in students if shared or any(s.student == k and s.state != "fresh" for s in found)]
        if not due:
            return dg.SkipReason(f"{len(students)} students, all up to date")
        when = context.scheduled_execution_time.isoformat()
        return [dg.RunRequest(run_key=f"{k}@{when}", partition_key=k, tags={names.TAG_STUDENT: k}) for k in due]

    return schedule
