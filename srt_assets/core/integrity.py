"""Checks the parts on disk against the SHA-256 sums in the manifest.

A part is hashed when it is seen for the first time and when its size, times or inode have changed. The result is
stored in a file of the home, so that the next check costs one `stat` per part. Bit rot changes neither size nor times:
`deep` reads all bytes again (`srt doctor --verify`, and before a training).
"""

import stat
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from srt_assets.core import looks
from srt_assets.core.errors import Damaged
from srt_assets.core.hashing import file_sha256
from srt_assets.core.manifest import Manifest
from srt_assets.core.parquet import read_failures, row_content_hash
from srt_assets.core.tables import TABLES

# Parts that this process has verified, by path: stat values and SHA-256.
_seen: dict[Path, list[Any]] = {}


def verify(directory: Path, manifest: Manifest, memory: Path, deep: bool = False) -> None:
    """Raise Damaged for the first part of a manifest that is missing or changed.

    `memory`: the file that stores earlier results. `deep`: read all parts and ignore earlier results.
    """
    known: dict[str, Any] | None = None
    read: dict[str, list[Any]] = {}
    settled: dict[str, list[Any]] = {}
    for name in manifest.parts:
        path, now = directory / name, time.time_ns()
        look = _look(path)
        facts = [*look, manifest.sums.get(name)]
        if not deep and _seen.get(path) == facts:
            continue
        if known is None:
            known = looks.remembered(memory)
        if deep or known.get(name) != facts:
            _compare(path, manifest.sums.get(name))
            read[name] = facts
            if looks.is_settled(look, now):
                settled[name] = facts
        else:
            _seen[path] = facts
    if read and not manifest.sums:
        _compare_rows(directory, manifest)
    if settled:
        _seen.update({directory / name: facts for name, facts in settled.items()})
        looks.remember(memory, {name: f for name in manifest.parts if (f := _seen.get(directory / name))})


def memory_of(home: Path, manifest: Manifest) -> Path:
    """The file that stores the results for a table or partition."""
    return looks.memory_of(home, f"{manifest.table}.{manifest.partition}" if manifest.partition else manifest.table)


def problems(directory: Path, manifest: Manifest) -> list[Damaged]:
    """Read all parts and return one error per damaged part."""
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
    """Raise Damaged if this part is missing or its SHA-256 is not `expected` (None: check only the form)."""
    _look(path)
    _compare(path, expected)


def _look(path: Path) -> list[int]:
    """The stat values of a part (see `looks.looks`). Damaged if it is missing or no ordinary file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise Damaged(path, "it is gone") from None
    if not stat.S_ISREG(found.st_mode):
        raise Damaged(path, "it is no file")
    return looks.looks(found)


def _compare(path: Path, expected: str | None) -> None:
    with read_failures(path):
        if expected is None:  # an older program stored no sum: check that it is a Parquet file
            pq.read_metadata(path)
        elif file_sha256(path) == expected:
            return
    if expected is not None:
        raise Damaged(path, "its bytes are not those that were written (SHA-256)")


def _compare_rows(directory: Path, manifest: Manifest) -> None:
    """Check parts of an older program, which stored no sums, only a hash of the rows of finished tables."""
    if not manifest.content_hash or not manifest.parts:
        return
    paths = [directory / name for name in manifest.parts]
    with read_failures(paths[0]):
        found = row_content_hash(TABLES[manifest.table], paths)
    if found != manifest.content_hash:
        which = paths[0] if len(paths) == 1 else f"one of the {len(paths)} parts in {directory}"
        raise Damaged(which, "its rows are not those that were written")
