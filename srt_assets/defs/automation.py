"""Sensors and the nightly schedule. Most start only if `automation.enabled` is set. What an asset does is in `core`."""

import os
import zoneinfo
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from srt_assets.core import rights
from srt_assets.core.masking import redact
from srt_assets.defs import names
from srt_assets.defs.arrivals import STUDENTS, new_student_checkpoints
from srt_assets.defs.failures import cause
from srt_assets.defs.instance import fail_dead_runs
from srt_assets.defs.retirement import retired_students, settle
from srt_assets.defs.status import status_after_runs
from srt_assets.settings import Settings
from srt_assets.text import as_block

TICK_S = 30


def sensors(settings: Settings, tick_s: int = TICK_S) -> list[dg.SensorDefinition]:
    """The sensors, each evaluated every `tick_s` seconds. Those that request runs start if automation is enabled."""
    on = dg.DefaultSensorStatus.RUNNING if settings.automation.enabled else dg.DefaultSensorStatus.STOPPED
    student_side = dg.AssetSelection.assets(*names.STUDENT_SIDE)
    changed = dg.AutomationConditionSensorDefinition(
        "changed_inputs",
        target=student_side,
        default_status=on,
        minimum_interval_seconds=tick_s,
        description="Requests the student-side assets whose inputs or code have changed, by data version.",
    )
    return [
        dead_runs(tick_s),
        retired_students(settings, tick_s),
        new_student_checkpoints(settings, tick_s),
        changed,
        failed_runs(settings, on, tick_s),
        status_after_runs(on, tick_s),
    ]


def schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    return [nightly(settings)]


def dead_runs(tick_s: int) -> dg.SensorDefinition:
    """A sensor that always runs, because a run whose process is dead would block the next one."""

    @dg.sensor(
        name="dead_runs",
        minimum_interval_seconds=tick_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Fails runs whose process is gone and frees the pool slots they held.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        failed = fail_dead_runs(context.instance, in_daemon=True)
        return dg.SkipReason(f"marked as ended: {', '.join(failed)}" if failed else "no dead run")

    return sensor


def failed_runs(settings: Settings, status: dg.DefaultSensorStatus, tick_s: int) -> dg.SensorDefinition:
    """A sensor that writes `home/failures/<run>.md` for every failed run: what failed, and how to resume."""

    @dg.run_failure_sensor(
        name="failed_runs",
        minimum_interval_seconds=tick_s,
        default_status=status,
        description="Writes down what failed and how to resume.",
    )
    def sensor(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        student = run.tags.get("dagster/partition")
        command = f"srt run --student {student}" if student else "srt run"
        lines = [f"# Run {run.run_id} of {run.job_name} failed", "", f"noted {datetime.now(UTC).isoformat()}", ""]
        for event in context.get_step_failure_events():
            lines += [f"## {event.step_key}", "", as_block(redact(cause(event))), ""]
        lines += [as_block(redact(context.failure_event.message or "")), ""]
        lines += [f"Resume: `{command}`, or re-execute the run in the UI."]
        rights.keep(settings.home)
        folder = Path(settings.home) / "failures"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{run.run_id}.md").write_text("\n".join(lines) + "\n")

    return sensor


def nightly(settings: Settings) -> dg.ScheduleDefinition:
    """A schedule that runs every student for which `srt status` shows changed, missing or failed."""
    on = settings.automation.enabled
    status = dg.DefaultScheduleStatus.RUNNING if on else dg.DefaultScheduleStatus.STOPPED

    @dg.schedule(
        name="nightly",
        job_name="everything",
        cron_schedule=settings.automation.nightly,
        execution_timezone=local_timezone(),
        default_status=status,
        description="Requests a run for every student with an asset that is changed, missing or failed.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        from srt_assets.core.lake import Lake
        from srt_assets.core.status import standings
        from srt_assets.core.students import checkpoints, watch

        lake = Lake(settings.home)
        settle(settings, lake, context.instance)
        # A run for a student that is neither in the home nor in the watched folder would fail every night.
        offered = {slug for slug, found in watch.offered(settings).items() if not watch.kept_out(lake, slug, found)}
        there = {*checkpoints.list_students(lake), *offered}
        students = sorted(there & set(context.instance.get_dynamic_partitions(STUDENTS)))
        found = standings(settings, lake, students)
        shared = any(s.student is None and s.state != "fresh" for s in found)
        due = [k for k in students if shared or any(s.student == k and s.state != "fresh" for s in found)]
        if not due:
            notes = "".join(f"; {s.asset} was {s.why}" for s in found if s.state == "fresh" and s.why)
            return dg.SkipReason(f"{len(students)} students, all up to date{notes}")
        when = context.scheduled_execution_time.isoformat()
        return [dg.RunRequest(run_key=f"{k}@{when}", partition_key=k, tags={names.TAG_STUDENT: k}) for k in due]

    return schedule


def local_timezone() -> str:
    """The name of the machine's time zone. Dagster evaluates cron lines in UTC unless a time zone is given."""
    places = [os.environ.get("TZ", "").removeprefix(":"), str(Path("/etc/localtime").resolve())]
    for name in (place.rpartition("/zoneinfo/")[2] for place in places):
        try:
            return zoneinfo.ZoneInfo(name).key
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):  # empty, or not the name of a time zone
            continue
    return "UTC"
