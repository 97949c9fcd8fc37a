"""Keeps students and partitions in step: deleting a partition in the UI retires its student, and retiring a student
deletes its partition.

Dagster does not report that a partition was deleted. So the partitions of each home are stored a second time in the
instance, under another name. `dagster run wipe` deletes both and therefore retires no student.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import dagster as dg

from srt_assets.core.errors import UserError
from srt_assets.core.hashing import digest
from srt_assets.core.lake import Lake
from srt_assets.core.sql.catalog import Publisher
from srt_assets.core.students import folders, news, retired, watch
from srt_assets.core.students.retire import retire
from srt_assets.core.students.retired import Retired
from srt_assets.defs import names
from srt_assets.settings import Settings

STUDENTS = names.students.name or ""
UNFINISHED = [s for s in dg.DagsterRunStatus if s.value not in ("SUCCESS", "FAILURE", "CANCELED", "MANAGED")]

log = logging.getLogger(__name__)


def settle(settings: Settings, lake: Lake, instance: dg.DagsterInstance) -> list[str]:
    """Retire the students whose partition was deleted since the last call. Returns their slugs.

    Sensors, schedules and commands call this before they list the students.
    """
    files = _files(instance)
    seen = news.look(lake, Path(instance.root_directory), files) if files else {}
    had, now = _had(lake, instance), _partitions(instance)
    out, later = [], set()
    for slug in sorted(had - now):
        try:
            if _deleted(settings, lake, instance, slug):
                out.append(slug)
        except UserError as error:  # try the other students, and this one again at the next call
            log.warning("the partition %s was deleted, but its student cannot be retired: %s", slug, error)
            later.add(slug)
    for slug in had - now - later:
        forget(lake, instance, slug)
    note(lake, instance, now)
    known = retired.every(lake)
    _tidy(settings, lake, instance, known)
    if out:
        Publisher().ended(lake)
    if seen and not later and not known.keys() & now:
        news.remember(lake, seen)
    return out


def _deleted(settings: Settings, lake: Lake, instance: dg.DagsterInstance, slug: str) -> bool:
    """Retire the student of a deleted partition. False if there is none, or it was added again meanwhile."""

    def still() -> bool:
        offered = watch.offered(settings, slug)
        there = folders.is_registered(lake, slug) or (slug in offered and not retired.get(lake, slug))
        return there and slug in _had(lake, instance) - _partitions(instance)

    return retire(settings, lake, slug, still) is not None


def _tidy(settings: Settings, lake: Lake, instance: dg.DagsterInstance, out: Iterable[str]) -> None:
    """Finish the retirement of these students (rows and partitions) if a process was killed in the middle of it."""
    for slug in out:
        try:
            retired.show(lake, slug)
        except UserError as error:
            log.warning("the table students does not say that %s is retired: %s", slug, error)
    for slug in sorted({*out} & _partitions(instance)):
        offered = watch.offered(settings, slug).get(slug)
        if offered and not watch.kept_out(lake, slug, offered):
            continue  # it has new files in the watched folder, which a run will register
        if retired.get(lake, slug):  # checked again, because it may have been added meanwhile
            instance.delete_dynamic_partition(STUDENTS, slug)


def remove(settings: Settings, lake: Lake, instance: dg.DagsterInstance, slug: str) -> Retired:
    """Retire a student and delete its partition. UserError if there is no such student."""
    found = retire(settings, lake, slug)
    assert found, "without `still`, retire always returns the student"
    if slug in _partitions(instance):
        instance.delete_dynamic_partition(STUDENTS, slug)
    forget(lake, instance, slug)
    return found


def add_partitions(lake: Lake, instance: dg.DagsterInstance, slugs: Iterable[str]) -> None:
    """Add a partition for each of these students."""
    instance.add_dynamic_partitions(STUDENTS, list(slugs))
    note(lake, instance, slugs)


def note(lake: Lake, instance: dg.DagsterInstance, slugs: Iterable[str]) -> None:
    """Store that these students have a partition in this instance."""
    if new := sorted({*slugs} - _had(lake, instance)):
        instance.add_dynamic_partitions(_memory(lake), new)


def forget(lake: Lake, instance: dg.DagsterInstance, slug: str) -> None:
    """Forget a student's earlier partition before it is registered, so that its absence does not count as deletion."""
    if slug in _had(lake, instance):
        instance.delete_dynamic_partition(_memory(lake), slug)


def runs_of(instance: dg.DagsterInstance, slug: str) -> list[str]:
    """Ids of a student's unfinished runs, queued ones included."""
    filters = dg.RunsFilter(tags={"dagster/partition": slug}, statuses=UNFINISHED)
    return [run.run_id for run in instance.get_runs(filters)]


def retired_students(settings: Settings, tick_s: int) -> dg.SensorDefinition:
    """A sensor that always runs: a partition deleted in the UI retires its student, also without automation."""

    @dg.sensor(
        name="retired_students",
        minimum_interval_seconds=tick_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Retires the students whose partition was deleted in the UI; `srt students add` brings them back.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        out = settle(settings, Lake(settings.home), context.instance)
        return dg.SkipReason(f"retired: {', '.join(out)}" if out else "no partition was deleted")

    return sensor


def _partitions(instance: dg.DagsterInstance) -> set[str]:
    return set(instance.get_dynamic_partitions(STUDENTS))


def _memory(lake: Lake) -> str:
    return f"students that {digest(home=str(lake.home))[:16]} has had"


def _files(instance: dg.DagsterInstance) -> list[Path]:
    """The files in which the instance stores its partitions; [] if they are elsewhere, such as on a server."""
    path_of = getattr(instance.event_log_storage, "path_for_shard", None)
    if path_of is None:
        return []
    index = path_of("index")
    return [Path(index), Path(f"{index}-wal"), Path(instance.root_directory) / "dagster.yaml"]


def _had(lake: Lake, instance: dg.DagsterInstance) -> set[str]:
    return set(instance.get_dynamic_partitions(_memory(lake)))
