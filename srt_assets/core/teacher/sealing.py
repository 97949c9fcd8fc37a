"""Turns segments of the ledger into Parquet parts of `teacher_calls`, and recovers parts that no manifest names.

Paid rows are never removed: a part is superseded only by another part that holds all its rows. Writing segments is in
`ledger.py`.
"""

import logging
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from srt_assets.core import integrity, parquet
from srt_assets.core.aside import keep_copy, set_aside
from srt_assets.core.errors import Damaged
from srt_assets.core.files import opened, what_else
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.locks import try_lock
from srt_assets.core.tables import TABLES, sql_literal
from srt_assets.core.teacher.ledger import TABLE, read_segment, segments

VERSION = "1"
_ROWS = 20_000
_COMPACT_ABOVE = 24

log = logging.getLogger(__name__)


def seal(lake: Lake) -> int:
    """Turn the segments that no process is writing into Parquet parts; returns how many rows moved.

    Raises Damaged if the table is damaged.
    """
    adopt(lake)
    if not segments(lake):
        return 0
    with lake.lock(TABLE):
        held = [(path, file) for path in segments(lake) if (file := _claim(path)) is not None]
        try:
            return _seal_claimed(lake, [path for path, _ in held])
        finally:
            for _, file in held:
                file.close()


def adopt(lake: Lake) -> None:
    """Add parts that no manifest names to the manifest: those of a lost manifest, or of a seal that was killed.

    Raises Damaged if one of them cannot be read completely.
    """
    if not _unnamed(lake):
        return
    with lake.lock(TABLE):
        # Look again: another process may have added them while this one waited for the lock.
        found = _unnamed(lake)
        if not found:
            return
        for path in found:
            _check_pages(path)
        names = _adopted(lake, found)
        rest = [path.name for path in found if path.name not in names]
        _commit(lake, names, superseded=rest)
    log.warning("%s: %d part(s) that no manifest names were found again", lake.directory(TABLE), len(found))


def salvage(lake: Lake) -> list[tuple[Path, Path, int]]:
    """Set damaged parts aside and keep their intact rows. The caller holds the table's lock.

    Returns for each damaged part its old path, its new path, and how many of its rows were kept.
    """
    manifest = lake.manifest(TABLE)
    directory = lake.directory(TABLE)
    sums = manifest.sums if manifest else {}
    names, done = list(manifest.parts) if manifest else [], []
    for path in [*(directory / name for name in names), *_unnamed(lake)]:
        kept: list[pa.Table] = []
        try:
            integrity.check(path, sums.get(path.name))
            if path.name not in sums:
                _check_pages(path)
        except Damaged:
            if path.is_file():
                kept = parquet.whole_row_groups(path, TABLES[TABLE])
            place = set_aside(lake.home, path) if path.exists() else path
            rows = sum(len(piece) for piece in kept)
            done.append((path, place, rows))
            names = [name for name in names if name != path.name]
            names += [parquet.write(directory, TABLES[TABLE], kept)] if rows else []
    if done:
        _commit(lake, names)
    return done


def _commit(lake: Lake, names: list[str], superseded: list[str] | None = None) -> None:
    made_from = Fingerprint.of(parts=names)
    lake.commit(TABLE, names, fingerprint=made_from, code_version=VERSION, complete=False, superseded=superseded or [])


def _unnamed(lake: Lake) -> list[Path]:
    """Parts that are neither current nor superseded in the manifest."""
    manifest = lake.manifest(TABLE)
    named = {*manifest.parts, *manifest.superseded} if manifest else set()
    return sorted(path for path in lake.directory(TABLE).glob(parquet.PATTERN) if path.name not in named)


def damaged_unnamed(lake: Lake) -> list[Damaged]:
    """The errors of damaged parts that no manifest names; `adopt` cannot add them."""
    found = []
    for path in _unnamed(lake):
        try:
            _check_pages(path)
        except Damaged as error:
            found.append(error)
    return found


def _check_pages(path: Path) -> None:
    if why := what_else(path):
        raise Damaged(path, f"it {why}")
    parquet.check_pages(path)


def _adopted(lake: Lake, found: list[Path]) -> list[str]:
    """The parts for the manifest, so that the table holds every row of `found` once.

    Some rows of `found` are duplicates: rows of a killed seal are still in their segments, and rows of compacted parts
    are also in the compacted part. Copying rows would lose columns that only a newer program knows, so parts with such
    columns are added unchanged, duplicates included.
    """
    before = lake.manifest(TABLE)
    names = list(before.parts) if before else []
    select = TABLES[TABLE].select_sql
    live = ", ".join(sql_literal(path.name) for path in segments(lake)) or "''"
    there = select([lake.directory(TABLE) / name for name in names])
    found_rows = f"SELECT * FROM ({select(found)}) WHERE segment IS NULL OR segment NOT IN ({live})"
    with lake.connect() as con:
        con.execute(f"CREATE TABLE news AS FROM ({found_rows} EXCEPT {there})")
        counts = con.execute(f"SELECT (SELECT count(*) FROM news), (SELECT count(*) FROM ({select(found)}))").fetchone()
        new, rows = counts or (0, 0)
        if new == rows or any(_is_newer(path) for path in found):
            return [*names, *(path.name for path in found)]
        return [*names, lake.sink_part(con, "FROM news", TABLE)] if new else names


def _claim(path: Path) -> BinaryIO | None:
    try:
        file = opened(path)
    except FileNotFoundError:
        return None
    if not try_lock(file):
        file.close()
        return None
    return file


def _seal_claimed(lake: Lake, paths: list[Path]) -> int:
    before = lake.manifest(TABLE)
    names = list(before.parts) if before else []
    with lake.connect() as con:
        # After a crash between the commit and the removal of segments, their rows must not be added again.
        done = {name for (name,) in con.execute(f"SELECT DISTINCT segment FROM {TABLE}").fetchall()}
        damaged: dict[Path, list[bytes]] = {path: [] for path in paths if path.name not in done}
        moved = 0
        all_rows = (row for path, lines in damaged.items() for row in read_segment(path, lines))
        while rows := list(islice(all_rows, _ROWS)):
            names.append(lake.write_part(TABLE, rows))
            moved += len(rows)
        if moved and len(names) > _COMPACT_ABOVE:
            names = _compact(lake, con, names)
    if moved or not before:
        _commit(lake, names)
    for path in paths:
        _report(lake, path, damaged.get(path, []))
        path.unlink(missing_ok=True)
    return moved


def _report(lake: Lake, path: Path, damaged: list[bytes]) -> None:
    """Log the lost lines of a segment. Unless they are only an incomplete last line, a copy of the segment is kept."""
    if not damaged:
        return
    lost = f"{path.name}: {len(damaged)} record(s) that are damaged, or were cut off by a crash, are lost"
    if any(line.endswith(b"\n") for line in damaged):
        log.warning("%s; the segment is kept as %s", lost, keep_copy(lake.home, path))
    else:
        log.warning("%s", lost)


def _compact(lake: Lake, con: duckdb.DuckDBPyConnection, names: list[str]) -> list[str]:
    """Merge many parts into one. Parts with columns that only a newer program knows stay, or they would lose data."""
    paths = {name: lake.directory(TABLE) / name for name in names}
    newer = [name for name, path in paths.items() if _is_newer(path)]
    ours = [path for name, path in paths.items() if name not in newer]
    if len(ours) <= _COMPACT_ABOVE:
        return names
    return [*newer, lake.sink_part(con, TABLES[TABLE].select_sql(ours), TABLE)]


def _is_newer(path: Path) -> bool:
    return not set(TABLES[TABLE].arrow_schema.names).issuperset(pq.read_schema(path).names)
