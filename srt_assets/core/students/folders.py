"""The folders of the registered students, and what a registration that was killed has left there.

    students/<slug>/          the student, with its record; also that of a retired one (`retired.py`)
    students/.aside-<slug>/   being filled, to take its place
    students/.old-<slug>/     the one before, for the moment in which the other takes its place

No file system can put one folder in the place of another in one step: a process that finds a student's folder
gone puts the one before back.
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
# What the record of a retired student has, and no other.
RETIRED = "retired"
# When a student that was retired was added again.
BACK_AT = "back_at"
_WRITTEN = {"source": str, "revision": str, "parent": str, "generation": int}
_OF_RETIRED = {"at": str, "signatures": list}


def slugs(lake: Lake) -> list[str]:
    """Slugs of all registered students, sorted; not those of retired ones."""
    return sorted(slug for slug, found in records(lake) if RETIRED not in found)


def is_registered(lake: Lake, slug: str) -> bool:
    """Whether `slugs` has this one."""
    found = _record_now(lake.home / "students", slug)
    return found is not None and RETIRED not in found


def records(lake: Lake) -> Iterator[tuple[str, dict]]:
    """Slug and record of every student, retired ones too; the record is {} where it cannot be read."""
    root = lake.home / "students"
    for slug in {p.name.removeprefix(".old-") for p in root.glob("*")}:
        if slug.startswith("."):
            continue
        if (one := _record_now(root, slug)) is not None:
            yield slug, one


def _record_now(root: Path, slug: str) -> dict | None:
    # The last place once more: it may have been replaced while we looked.
    found = (_readable(place) for place in (root / slug, old(root, slug), root / slug))
    return next((record for record in found if record is not None), None)


def _readable(path: Path) -> dict | None:
    try:
        return record(path)
    except OSError:  # the next use of this student reports it
        return {}


def record(path: Path) -> dict | None:
    """What is written of a student: None if nothing is, {} if it is unreadable or says too little."""
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
    """`record` of a student, which is put back first if the process that was replacing it was killed."""
    root = lake.home / "students"
    found = record(root / slug)
    if found is not None:
        return found
    if old(root, slug).exists():
        with registering(lake, slug):
            settle(root, slug)
    # Also if it was not there: the process that was replacing it may have finished since we looked.
    return record(root / slug)


def old(root: Path, slug: str) -> Path:
    """Where a student's folder lies for the moment in which it is replaced."""
    return root / f".old-{slug}"


def settle(root: Path, slug: str) -> None:
    """Put back or remove what a registration has left. Only while `registering`."""
    before = old(root, slug)
    if before.exists() and not (root / slug).exists():
        before.replace(root / slug)
    for left in (before, root / f".aside-{slug}"):
        shutil.rmtree(left, ignore_errors=True)


def registering(lake: Lake, slug: str) -> AbstractContextManager[None]:
    """Be the only one who changes which folder is this student's."""
    return file_lock(lake.home / "locks" / f"students.{slug}.lock")
