"""Removes files of a table that are no longer needed, after each commit. Only the table's writer may call this."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from srt_assets.core import parquet
from srt_assets.core.locks import kept
from srt_assets.core.manifest import Manifest
from srt_assets.core.tables import TABLES

# Longer than the longest query through srt.duckdb: a query that was planned before a part was superseded still reads
# it.
GRACE = timedelta(minutes=10)
ORPHAN_AGE = timedelta(days=1)


def sweep(directory: Path, manifest: Manifest, readers: Path) -> None:
    """Remove superseded parts that no reader keeps (`readers`: see `locks.kept`), and files left by killed writers."""
    now = datetime.now(UTC)
    expired: list[Path] = []
    for path in directory.glob(parquet.PATTERN):
        if path.name in manifest.parts:
            continue
        since = manifest.superseded.get(path.name)
        if since:
            old = now - datetime.fromisoformat(since) > GRACE
        elif TABLES[manifest.table].is_paid:
            continue
        else:  # written by a process that died before its commit
            old = now - datetime.fromtimestamp(path.stat().st_mtime, UTC) > ORPHAN_AGE
        expired += [path] if old else []
    read = kept(readers) if expired else set()
    for path in expired:
        if path.name not in read:
            path.unlink(missing_ok=True)
    for path in directory.glob(parquet.UNFINISHED):  # left by a process that was killed while writing
        with suppress(FileNotFoundError):  # its writer may rename it meanwhile
            if now - datetime.fromtimestamp(path.stat().st_mtime, UTC) > ORPHAN_AGE:
                path.unlink()
