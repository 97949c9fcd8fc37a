"""The sensor for new students: registers complete checkpoints in the watched folder and requests their first run.

It also requests the first run of a student registered by `srt students add`. Nothing else requests first runs.
"""

import json
from pathlib import Path

import dagster as dg

from srt_assets.defs import names
from srt_assets.defs.retirement import settle
from srt_assets.settings import Settings

STUDENTS = names.students.name or ""
RUN_KEY, PARTITION = "dagster/run_key", "dagster/partition"
# Dagster keeps every tick's reason for days, so the reasons of hundreds of folders must not fill the disk.
MOST_REASONS = 20
ENDED_BADLY = {dg.DagsterRunStatus.FAILURE: "failed", dg.DagsterRunStatus.CANCELED: "was stopped"}


def new_student_checkpoints(settings: Settings, tick_s: int) -> dg.SensorDefinition:
    """The sensor; started automatically if automation is enabled. It reads only names, sizes and headers."""
    status = dg.DefaultSensorStatus.RUNNING if settings.automation.enabled else dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        name="new_student_checkpoints",
        job_name="student_side",
        minimum_interval_seconds=tick_s,
        default_status=status,
        description="Registers every whole checkpoint in automation.watch, and requests a run for each new student.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from srt_assets.core.lake import Lake
        from srt_assets.core.scoring import stage as scores
        from srt_assets.core.students import checkpoints, retired, watch

        instance, lake = context.instance, Lake(settings.home)
        settle(settings, lake, instance)
        seen = json.loads(context.cursor or "{}")
        whole, refused = watch.scan(Path(settings.automation.watch)) if settings.automation.watch else ({}, {})
        for slug in [*whole]:
            if out := watch.kept_out(lake, slug, whole[slug]):
                refused[slug] = f"{out.error.message}; {out.error.remedy}"
                del whole[slug]
        known = set(instance.get_dynamic_partitions(STUDENTS))
        registered = set(checkpoints.list_students(lake))
        cursor = json.dumps({slug: found.signature for slug, found in whole.items()}, sort_keys=True)
        # A checkpoint is accepted when two ticks saw the same files, because a trainer may still be writing.
        settled = {slug: found for slug, found in whole.items() if seen.get(slug) == found.signature}
        tags = dict(instance.get_run_tags([RUN_KEY, PARTITION]))
        # The key contains the files' signature: the same files never run twice, changed files run again.
        run_keys = {slug: f"{slug}:{found.signature}" for slug, found in settled.items()}
        asked = tags.get(RUN_KEY, set())
        for slug, key in run_keys.items():
            # The run succeeded, but the student is not registered here: the run was for another home.
            if key in asked and slug not in registered and (run := _newest_run(instance, slug)) and run.is_success:
                run_keys[slug] += f":{run.run_id}"
        due = {slug: key for slug, key in run_keys.items() if key not in asked}
        for slug in [*due]:
            if other := checkpoints.taken_by(lake, slug, whole[slug].source, whole[slug].listed):
                refused[slug] = f"the student {slug} is another, {other}; give this one another name"
                del due[slug]
        # A student that is not in the watched folder was registered by command.
        added = registered - set(whole) - tags.get(PARTITION, set())
        added -= set(instance.get_materialized_partitions(dg.AssetKey(names.STUDENT_CHECKPOINT)))
        due |= {slug: f"{slug}:added" for slug in added}
        # A student that was brought back needs a run, because its results may have been purged.
        back = {slug: f"{slug}:back:{at}" for slug, at in retired.returned(lake).items()}
        due |= {slug: key for slug, key in back.items() if key not in asked}
        adds = [names.students.build_add_request(sorted(set(due) - known))]
        if due and scores.can_be_made(lake):
            requests = [
                dg.RunRequest(run_key=key, partition_key=slug, tags={names.TAG_STUDENT: slug})
                for slug, key in sorted(due.items())
            ]
            return dg.SensorResult(run_requests=requests, dynamic_partitions_requests=adds, cursor=cursor)
        reasons = [*_failed(instance, {*settled, *registered}), *(f"{name}: {why}" for name, why in refused.items())]
        reasons += [f"{slug}: waiting for a second look at the same files" for slug in whole if slug not in settled]
        # A run would fail now, and nothing would request it again before the nightly run.
        reasons += [f"{slug}: waiting for the teacher side; `srt run reflected_responses` makes it" for slug in due]
        why = _in_short(reasons) or _nothing(settings.automation.watch, len(whole))
        return dg.SensorResult(skip_reason=why, dynamic_partitions_requests=adds, cursor=cursor)

    return sensor


def _newest_run(instance: dg.DagsterInstance, student: str) -> dg.DagsterRun | None:
    return next(iter(instance.get_runs(dg.RunsFilter(tags={PARTITION: student}), limit=1)), None)


def _failed(instance: dg.DagsterInstance, students: set[str]) -> list[str]:
    """A line for each student whose newest run failed, with how to resume."""
    bad = instance.get_runs(dg.RunsFilter(statuses=[*ENDED_BADLY]), limit=200)
    suspects = students & {run.tags.get(PARTITION, "") for run in bad}
    newest = {slug: run for slug in sorted(suspects) if (run := _newest_run(instance, slug))}
    return [
        f"{slug}: run {run.run_id[:8]} {ENDED_BADLY[run.status]}; re-execute it here, or `srt run --student {slug}`"
        for slug, run in newest.items()
        if run.status in ENDED_BADLY
    ]


def _in_short(reasons: list[str]) -> str:
    """The reasons as one text of limited length that every storage accepts; file names may contain anything."""
    more = [f"and {len(reasons) - MOST_REASONS} more"] if len(reasons) > MOST_REASONS else []
    text = "; ".join(reasons[:MOST_REASONS] + more)
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _nothing(folder: str, whole: int) -> str:
    if not folder:
        return "automation.watch is not set: no folder to look at; no student was added"
    if not Path(folder).is_dir():
        return f"there is no folder {folder}: correct automation.watch, or make it"
    return f"{whole} checkpoints, none new" if whole else f"no checkpoint in {folder}"
