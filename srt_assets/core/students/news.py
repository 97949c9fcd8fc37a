"""Tells from the files of a Dagster instance whether a student may have been deleted in its UI, without opening it.

Opening an instance takes more than a second, and `srt status` would rarely find anything new. So the stat values of its
database files are stored after each check (`defs/retirement.py`) that left nothing to do.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from srt_assets.core import looks
from srt_assets.core.hashing import digest
from srt_assets.core.lake import Lake
from srt_assets.core.students import retired

_MEMORY = "instance"


def look(lake: Lake, instance: Path, files: Iterable[Path]) -> dict[str, Any]:
    """The facts to store if nothing is left to do: the instance, its files' stat values, the retired students.

    {} if there are no files, or if a file changed so recently that a later change may not change its stat values.
    """
    now = time.time_ns()
    found = {str(path): _looks(path) for path in files}
    if not all(one is None or looks.is_settled(one, now) for one in found.values()):
        return {}
    return _facts(lake, instance, found) if found else {}


def remember(lake: Lake, found: dict[str, Any]) -> None:
    """Store these facts, after the instance was checked and nothing was left to do."""
    memory = looks.memory_of(lake.home, _MEMORY)
    if looks.remembered(memory) != found:
        looks.remember(memory, found)


def none(lake: Lake, instance: Path) -> bool:
    """True if the instance is unchanged since the stored check. False also if there is none."""
    known = looks.remembered(looks.memory_of(lake.home, _MEMORY))
    files = known.get("files")
    if not isinstance(files, dict) or not files:
        return False
    return known == _facts(lake, instance, {path: _looks(Path(path)) for path in files})


def _facts(lake: Lake, instance: Path, files: dict[str, list[int] | None]) -> dict[str, Any]:
    out = {slug: one.at for slug, one in retired.every(lake).items()}
    return {"instance": str(instance), "files": files, "retired": digest(out=out)}


def _looks(path: Path) -> list[int] | None:
    try:
        return looks.looks(path.stat())
    except OSError:
        return None
