"""Whether the parts on disk are what was written: each against its SHA-256 in the manifest.

A part is hashed when it is seen for the first time and whenever its file looks touched (size, times, inode). The answer
is remembered, in a file of the home, so that asking again costs a `stat` a part. Bits that decay on the disk leave the
times alone: for those there is `deep` (`srt doctor --verify`, and before a training).
"""

import json
import stat
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from srt_assets.core.errors import Damaged
from srt_assets.core.files import read_own
from srt_assets.core.hashing import file_sha256
from srt_assets.core.manifest import Manifest
from srt_assets.core.parquet import row_content_hash
from srt_assets.core.tables import TABLES

# A file may change twice within one tick of its clock: what was touched this lately (seconds) is hashed again.
SETTLED_S = 2.0

# What is remembered of a part: size, times of change (of the content, of the inode), inode, SHA-256.
_CHANGED = 2
# What this process has seen, by path.
_seen: dict[Path, list[Any]] = {}


def verify(directory: Path, manifest: Manifest, memory: Path, deep: bool = False) -> None:
    """Raise Damaged for the first part of a manifest that is gone or not as it was written.

    `memory`: the file where the answers are remembered. `deep`: read all parts, whatever is remembered.
    """
    known: dict[str, Any] | None = None
    read: dict[str, list[Any]] = {}
    for name in manifest.parts:
        path = directory / name
        facts = [*_looks(path), manifest.sums.get(name)]
        if not deep and _seen.get(path) == facts:
            continue
        if known is None:
            known = _remembered(memory)
        if deep or known.get(name) != facts:
            _compare(path, manifest.sums.get(name))
            read[name] = facts
        else:
            _seen[path] = facts
    if read and not manifest.sums:
        _compare_rows(directory, manifest)
    settled = {n: f for n, f in read.items() if time.time_ns() - f[_CHANGED] > SETTLED_S * 1e9}
    if settled:
        _seen.update({directory / name: facts for name, facts in settled.items()})
        _remember(memory, {name: f for name in manifest.parts if (f := _seen.get(directory / name))})


def memory_of(home: Path, manifest: Manifest) -> Path:
    """Where the answers for a table or partition are remembered: beside the lake, for reading changes nothing in it."""
    name = f"{manifest.table}.{manifest.partition}" if manifest.partition else manifest.table
    return home / "locks" / "verified" / f"{name}.json"


def problems(directory: Path, manifest: Manifest) -> list[Damaged]:
    """Every part that is damaged, all of them read."""
    found = []
    for name in manifest.parts:
        try:
            check(directory / name, manifest.sums.get(name))
        except Damaged as error:
            found.append(error)
    if not found and not manifest.sums:
        try:
            _compare_rows(directory, manifest)
        except Damaged as error:
            found.append(error)
    return found


def check(path: Path, expected: str | None) -> None:
    """Damaged if this part is gone, or not of this SHA-256; None for one whose sum nobody knows."""
    _looks(path)
    _compare(path, expected)


def _looks(path: Path) -> list[Any]:
    """Size, times and inode of a part. Damaged if it is not there, or no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise Damaged(path, "it is gone") from None
    if not stat.S_ISREG(found.st_mode):
        raise Damaged(path, "it is no file")
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _compare(path: Path, expected: str | None) -> None:
    if expected is None:  # of an older program: is it a Parquet file at all?
        try:
            pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise Damaged(path, str(error)) from None
    elif file_sha256(path) != expected:
        raise Damaged(path, "its bytes are not those that were written (SHA-256)")


def _compare_rows(directory: Path, manifest: Manifest) -> None:
    """The same for parts of an older program, which left a hash of the rows only, and of finished tables only."""
    if not manifest.content_hash or not manifest.parts:
        return
    paths = [directory / name for name in manifest.parts]
    try:
        found = row_content_hash(TABLES[manifest.table], paths)
    except Exception as error:  # noqa: BLE001 - damaged pages have DuckDB raise anything, internal errors included
        raise Damaged(paths[0], f"it cannot be read: {error}") from None
    if found != manifest.content_hash:
        which = paths[0] if len(paths) == 1 else f"one of the {len(paths)} parts in {directory}"
        raise Damaged(which, "its rows are not those that were written")


def _remembered(memory: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_own(memory))
    except (OSError, ValueError, Damaged):  # lost or unreadable: the parts are read again
        return {}
    return found if isinstance(found, dict) else {}


def _remember(memory: Path, parts: dict[str, list[Any]]) -> None:
    temporary = memory.with_name(f".{memory.name}.{uuid.uuid4().hex}")
    # Somebody else's home, a full disk: then every process reads them once more.
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(parts))
        temporary.replace(memory)
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
