"""Whether a Dagster instance may know of a student that was deleted there: told from its files, without opening it.

Opening one takes more than a second, and `srt status` would find nothing new nearly every time. What is remembered is
how the files of its database looked when somebody last looked into it (`defs/retirement.py`), and found all settled.
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
    """What is to be remembered if all is settled: of an instance, the files that say it, and who is retired.

    {} if a file was changed so shortly ago that it may change again without another look, or if there are no files.
    """
    now = time.time_ns()
    found = {str(path): _looks(path) for path in files}
    if not all(one is None or looks.is_settled(one, now) for one in found.values()):
        return {}
    return _facts(lake, instance, found) if found else {}


def remember(lake: Lake, found: dict[str, Any]) -> None:
    """Somebody has looked into the instance after this look, and nothing was left to do."""
    memory = looks.memory_of(lake.home, _MEMORY)
    if looks.remembered(memory) != found:
        looks.remember(memory, found)


def none(lake: Lake, instance: Path) -> bool:
    """True if this instance says what it said before. False also if that is not known."""
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
