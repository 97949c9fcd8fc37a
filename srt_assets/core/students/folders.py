"""The folders of the registered students, also after a registration was killed.

    students/<slug>/          the student, with its record; also of a retired student (`retired.py`)
    students/.aside-<slug>/   the new folder while it is filled
    students/.old-<slug>/     the old folder while it is replaced

A file system cannot replace a folder by another in one step. So a process that finds a student's folder missing moves
the old one back.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from srt_assets.core import files
from srt_assets.core.lake import Lake
from srt_assets.core.locks import file_lock

RECORD = "srt_student.json"
# Key in the record of a retired student.
RETIRED = "retired"
# Key in the record: when a retired student was added again.
BACK_AT = "back_at"
_WRITTEN = {"source": str, "revision": str, "parent": str, "generation": int}
_OF_RETIRED = {"at": str, "signatures": list}


def slugs(lake: Lake) -> list[str]:
    """Slugs of all registered students, without retired ones, sorted."""
    return sorted(slug for slug, found in records(lake) if RETIRED not in found)


def is_registered(lake: Lake, slug: str) -> bool:
    """Whether `slugs` has this one."""
    found = _record_now(lake.home / "students", slug)
    return found is not None and RETIRED not in found


def records(lake: Lake) -> Iterator[tuple[str, dict]]:
    """Slug and record of every student, retired ones included; the record is {} if it cannot be read."""
    root = lake.home / "students"
    for slug in {p.name.removeprefix(".old-") for p in root.glob("*")}:
        if slug.startswith("."):
            continue
        if (one := _record_now(root, slug)) is not None:
            yield slug, one


def _record_now(root: Path, slug: str) -> dict | None:
    # Look at the first place again at the end: the folder may have been replaced meanwhile.
    found = (_readable(place) for place in (root / slug, old(root, slug), root / slug))
    return next((record for record in found if record is not None), None)


def _readable(path: Path) -> dict | None:
    try:
        return record(path)
    except OSError:  # the next use of this student reports it
        return {}


def record(path: Path) -> dict | None:
    """The record in a student's folder: None if there is none, {} if it is unreadable or incomplete."""
    try:
        found = json.loads(files.read_text(path / RECORD))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, files.NoFile):
        return {}
    whole = _has(found, _WRITTEN) and (RETIRED not in found or _has(found[RETIRED], _OF_RETIRED))
    return found if whole else {}


def _has(found: object, facts: Mapping[str, type]) -> bool:
    return isinstance(found, dict) and all(isinstance(found.get(key), kind) for key, kind in facts.items())


def known(lake: Lake, slug: str) -> dict | None:
    """`record` of a student. If the process that was replacing its folder was killed, restores the folder first."""
    root = lake.home / "students"
    found = record(root / slug)
    if found is not None:
        return found
    if old(root, slug).exists():
        with registering(lake, slug):
            settle(root, slug)
    # Read again in any case: the process that was replacing the folder may have finished meanwhile.
    return record(root / slug)


def old(root: Path, slug: str) -> Path:
    """Path of a student's old folder while it is replaced."""
    return root / f".old-{slug}"


def settle(root: Path, slug: str) -> None:
    """Restore or remove the folders that a registration has left. Only while `registering`."""
    before = old(root, slug)
    if before.exists() and not (root / slug).exists():
        before.replace(root / slug)
    for left in (before, root / f".aside-{slug}"):
        shutil.rmtree(left, ignore_errors=True)


def registering(lake: Lake, slug: str) -> AbstractContextManager[None]:
    """A lock for changing this student's folder."""
    return file_lock(lake.home / "locks" / f"students.{slug}.lock")
