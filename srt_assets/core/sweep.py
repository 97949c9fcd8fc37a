"""Files of a table that nothing needs any more, removed after each commit. The table's writer alone calls this."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from srt_assets.core import parquet
from srt_assets.core.locks import kept
from srt_assets.core.manifest import Manifest
from srt_assets.core.tables import TABLES

# Longer than the longest query through srt.duckdb: who planned over a superseded part must still find it.
GRACE = timedelta(minutes=10)
ORPHAN_AGE = timedelta(days=1)


def sweep(directory: Path, manifest: Manifest, readers: Path) -> None:
    """Remove superseded parts that no reader has named in `readers`, and what killed writers left."""
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
    for path in directory.glob(parquet.UNFINISHED):  # by a process that was killed while it wrote
        with suppress(FileNotFoundError):  # it may get its name this moment
            if now - datetime.fromtimestamp(path.stat().st_mtime, UTC) > ORPHAN_AGE:
                path.unlink()
