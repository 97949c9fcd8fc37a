"""Stores facts about a file's content together with its stat values ("look"): size, times, inode.

While the stat values are unchanged, the stored fact is valid and asking again costs one `stat`. Bit rot changes no stat
value. Which facts are stored (the SHA-256 of a part or of an input file) is decided by the callers, not here.
"""

import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from srt_assets.core.errors import Damaged
from srt_assets.core.files import read_own

# Seconds. A file may change twice within one tick of the file system's clock. If it was changed less than this before
# it was read, a later change may leave its stat values as they are.
SETTLED_S = 2.0


def looks(found: os.stat_result) -> list[int]:
    """Size in bytes; mtime and ctime in nanoseconds; inode number."""
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def is_settled(found: list[int], read_at_ns: int) -> bool:
    """Whether any change of a file after it was read at `read_at_ns` is certain to change its stat values."""
    _, modified, changed, _ = found
    return read_at_ns - max(modified, changed) > SETTLED_S * 1e9


def memory_of(home: Path, name: str) -> Path:
    """The file that stores the facts under this name. It lies outside the lake, which readers must not change."""
    return home / "locks" / "verified" / f"{name}.json"


def remembered(memory: Path) -> dict[str, Any]:
    """The stored facts by file name; {} if they are missing or unreadable: then the files are read again."""
    try:
        found = json.loads(read_own(memory))
    except (OSError, ValueError, Damaged):
        return {}
    return found if isinstance(found, dict) else {}


def remember(memory: Path, facts: Mapping[str, Any]) -> None:
    """Replace the stored facts. Does nothing without write permission or on a full disk: files are read again then."""
    temporary = memory.with_name(f".{memory.name}.{uuid.uuid4().hex}")
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(facts))
        temporary.replace(memory)
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
