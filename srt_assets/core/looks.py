"""What is known of a file's content, remembered together with how the file looked: size, times, inode.

While it looks the same, asking again costs a `stat`. Bits that decay on the disk change no look. Who remembers what
(the sum of a part, of a file of the settings) is not decided here.
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

# A file may change twice within one tick of its clock: what was changed this shortly (seconds) before it was read may
# have changed again without another look.
SETTLED_S = 2.0


def looks(found: os.stat_result) -> list[int]:
    """Size in bytes; times of the last change of content and inode, in nanoseconds; inode."""
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def is_settled(found: list[int], read_at_ns: int) -> bool:
    """Whether a file of these looks, read from this moment on, is sure to look otherwise when it changes."""
    _, modified, changed, _ = found
    return read_at_ns - max(modified, changed) > SETTLED_S * 1e9


def memory_of(home: Path, name: str) -> Path:
    """The file that remembers under this name: beside the lake, for reading changes nothing in it."""
    return home / "locks" / "verified" / f"{name}.json"


def remembered(memory: Path) -> dict[str, Any]:
    """What is remembered, by name of file; {} if that is lost or unreadable: then the files are read again."""
    try:
        found = json.loads(read_own(memory))
    except (OSError, ValueError, Damaged):
        return {}
    return found if isinstance(found, dict) else {}


def remember(memory: Path, facts: Mapping[str, Any]) -> None:
    """Replace what is remembered. Does nothing in somebody else's home or on a full disk: files are read once more."""
    temporary = memory.with_name(f".{memory.name}.{uuid.uuid4().hex}")
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(facts))
        temporary.replace(memory)
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
