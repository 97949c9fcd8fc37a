"""`srt doctor`: checks this machine and the settings; each finding has a remedy. Changes nothing.

It does not call the teacher, except once with --ping.
"""

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table

from srt_assets.commands import terminal
from srt_assets.core import packaged, rights
from srt_assets.core.errors import UserError
from srt_assets.core.sql.faults import faults
from srt_assets.core.teacher.call import LOCAL
from srt_assets.settings import Settings, Teacher, find_settings_file, load_settings

if TYPE_CHECKING:
    from srt_assets.core.students.checkpoints import StudentInfo

STYLES = {"ok": "green", "warning": "yellow", "error": "red"}
LOW_DISK_BYTES = 5 * 2**30


class Finding(NamedTuple):
    """`level` is ok, warning or error; only an error makes `srt doctor` fail."""

    level: str
    what: str
    remedy: str = ""


def run(verify: bool = False, ping: bool = False) -> int:
    """Print every finding. Exit code 2 if something must be changed before a run can work."""
    findings = list(examine(verify, ping))
    table = Table(show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")  # paths must not be cut
    for level, what, remedy in findings:
        table.add_row(terminal.text(level, STYLES[level]), terminal.text(what), terminal.text(remedy))
    terminal.console().print(table)
    return 2 if any(f.level == "error" for f in findings) else 0


def examine(verify: bool = False, ping: bool = False) -> Iterator[Finding]:
    """All findings, in the order in which a run would meet them.

    `verify`: read every file of the home. `ping`: call the teacher once.
    """
    yield Finding("ok", f"Python {sys.version.split()[0]}")
    for name in ("dagster", "duckdb", "torch", "transformers", "litellm"):
        try:
            yield Finding("ok", f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding("error", f"the package {name} is not installed", "pip install srt-assets")
    try:
        settings = load_settings()
    except UserError as error:
        yield Finding("error", error.message, error.remedy)
        return
    yield Finding("ok", f"settings {find_settings_file() or '(defaults: no srt.toml from here upwards)'}")
    yield from _data(settings)
    yield from _home(settings)
    yield from _pinged(settings) if ping else _teacher(settings)
    yield from _student(settings)
    yield from _watched(settings)
    yield from (Finding("warning", f"SQL model left out: {error.message}", error.remedy) for error in faults())
    if verify:
        yield from _files(settings)


def _files(settings: Settings) -> Iterator[Finding]:
    from srt_assets.core import damage
    from srt_assets.core.lake import Lake

    found = list(damage.find(Lake(settings.home)))
    yield from (Finding("error", error.message, error.remedy) for error in found)
    if not found:
        yield Finding("ok", f"every file of {settings.home} is what was written there")


def _data(settings: Settings) -> Iterator[Finding]:
    from srt_assets.core.records.files.find import dataset_files

    if not settings.datasets:
        yield Finding("error", "no dataset in the settings", "add a [[datasets]] block to srt.toml")
    for dataset in settings.datasets:
        if dataset.hf:
            yield Finding("ok", f"dataset {dataset.name}: {dataset.hf} from the hub")
            continue
        try:
            yield Finding("ok", f"dataset {dataset.name}: {len(dataset_files(dataset))} file(s)")
        except UserError as error:
            yield Finding("error", error.message, error.remedy)


def _home(settings: Settings) -> Iterator[Finding]:
    there = next(p for p in (settings.home, *settings.home.parents) if p.exists())
    if not os.access(there, os.W_OK):
        yield Finding("error", f"{there} cannot be written to", "set project.home or SRT_HOME to a folder of yours")
    from srt_assets.defs.instance import not_for_dagster
    from srt_assets.home import dagster_home

    if unusable := not_for_dagster(dagster_home(settings)):
        yield Finding("error", unusable.message, unusable.remedy)
    if command := rights.open_to_others(settings.home):
        others = "users outside its group" if rights.is_team(settings.home) else "other users of this machine"
        yield Finding("warning", f"{settings.home} is open to {others}", f"{command} {shlex.quote(str(settings.home))}")
    free = shutil.disk_usage(there).free
    size = f"home {settings.home}: {free / 2**30:.0f} GiB free"
    yield Finding("warning", size, "checkpoints need room") if free < LOW_DISK_BYTES else Finding("ok", size)


def _teacher(settings: Settings) -> Iterator[Finding]:
    if settings.teacher.model != LOCAL:
        yield from _remote_teacher(settings.teacher)
        return
    for module, remedy in (
        ("xllamacpp", "pip install 'srt-assets[local]'"),
        (packaged.PACKAGE, packaged.REMEDY),
    ):
        if importlib.util.find_spec(module) is None:
            yield Finding("error", f"the local teacher needs the package {module}", remedy)
        else:
            yield Finding("ok", f"local teacher: {module}")


def _pinged(settings: Settings) -> Iterator[Finding]:
    from srt_assets.core.lake import Lake
    from srt_assets.core.teacher.ping import ping

    yield from (Finding(*told) for told in ping(settings, Lake(settings.home)))


def _remote_teacher(teacher: Teacher) -> Iterator[Finding]:
    from srt_assets.core.teacher.client import connect
    from srt_assets.core.teacher.money import prices_of

    try:
        client = connect(teacher)
        prices = prices_of(teacher)
    except UserError as error:
        yield Finding("error", error.message, error.remedy)
        return
    where = f" at {teacher.api_base}" if teacher.api_base else ", its key is set"
    yield Finding("ok", f"teacher {teacher.model}{where}; it was not called", "srt doctor --ping calls it once")
    if client.lacks_key:
        what = f"{client.lacks_key} is not set, which is right only if the server asks for no key"
        yield Finding("warning", what, f"export {client.lacks_key}=…, or see with srt doctor --ping that it needs none")
    if not prices.known:
        yield Finding(
            "warning", "its price is not known: costs stay empty", "set teacher.usd_per_million_input, _output"
        )
    if client.room.context is None:
        yield Finding(
            "warning", "its context size is not known", "set teacher.context_tokens, or too long records fail"
        )


def _student(settings: Settings) -> Iterator[Finding]:
    from srt_assets.core.lake import Lake
    from srt_assets.core.scoring import proofs
    from srt_assets.core.students import checkpoints

    lake = Lake(settings.home)
    slugs = checkpoints.list_students(lake)
    if not slugs:
        yield Finding("warning", "no student is registered", "srt students add smollm2 (or a directory, or a hub id)")
    for slug in slugs:
        try:
            student = checkpoints.get(lake, slug)
        except UserError as error:
            yield Finding("error", f"student {slug}: {error.message}", error.remedy)
        else:
            yield Finding("ok", f"student {slug}: {student.architecture}, {student.n_parameters:,} parameters")
            yield from _turns(settings, student)
            for line in proofs.told(settings.home, student.fingerprint):
                refused = ": refused: " in line
                remedy = "take another student" if refused else ""
                yield Finding("error" if refused else "ok", f"student {slug}, forward pass: {line}", remedy)


def _turns(settings: Settings, student: "StudentInfo") -> Iterator[Finding]:
    """How the student's own chat template ends an answer, if the settings use it."""
    from srt_assets.core.scoring import chat

    if settings.student.template != "chat":
        return
    try:
        turns = chat.of_student(student.slug, student.path, student.fingerprint)
    except UserError as error:
        yield Finding("error", error.message, error.remedy)
        return
    yield Finding("ok", f"student {student.slug}, chat template: an answer ends with {turns.end!r}")
    if turns.note:
        yield Finding("warning", f"student {student.slug}: {turns.note}", "prompt it as `srt students show` prints it")


def _watched(settings: Settings) -> Iterator[Finding]:
    from srt_assets.core.lake import Lake
    from srt_assets.core.students import watch

    folder = Path(settings.automation.watch)
    if not settings.automation.watch:
        return
    if not folder.is_dir():
        yield Finding("warning", f"there is no folder {folder} to watch", "correct automation.watch, or make it")
        return
    lake = Lake(settings.home)
    whole, refused = watch.scan(folder)
    yield Finding("ok", f"watched folder {folder}: {len(whole)} whole checkpoint(s)")
    for slug, found in whole.items():
        if out := watch.kept_out(lake, slug, found):
            yield Finding("ok", f"watched folder, {slug}: retired on {out.at[:10]}, stays out")
    for name, why in refused.items():
        yield Finding("warning", f"watched folder, {name}: {why}", "correct this, or it does not become a student")
