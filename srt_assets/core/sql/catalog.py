"""Builds `srt.duckdb`, the file that people query: views over the lake's parts, and the SQL models.

The published file is never opened for writing. It is built under another name and replaced atomically, so that readers
of the old file are not disturbed and a killed writer leaves no incomplete file. It holds only views, so it is small and
quick to build. The views name the parts by absolute path, so it is built again when the home has moved.
"""

import logging
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from srt_assets.core import stages  # noqa: F401 - importing the stages adds their tables to TABLES
from srt_assets.core.duck_paths import database_for
from srt_assets.core.errors import Damaged, UserError, explained
from srt_assets.core.files import what_else
from srt_assets.core.hashing import digest
from srt_assets.core.lake import Lake
from srt_assets.core.locks import file_lock
from srt_assets.core.sql import models
from srt_assets.core.sql.models import META
from srt_assets.core.tables import TABLES, sql_literal

# The storage format of DuckDB 1.5, so that its command line shell can read files written by later versions.
STORAGE_VERSION = "v1.5.0"

# Seconds between two publications while a stage is running.
EVERY_S = 30.0

log = logging.getLogger(__name__)


class Publisher:
    """Publishes when a stage ends, and at intervals while it runs. An error here never makes a stage fail."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._last = time.monotonic()

    def flushed(self, lake: Lake) -> None:
        """Called when a running stage has committed rows."""
        if time.monotonic() - self._last >= self._every_s:
            self.ended(lake)

    def ended(self, lake: Lake) -> None:
        """Called when a stage has ended or failed."""
        try:
            publish(lake)
        except (OSError, duckdb.Error, UserError) as error:
            why = known.message if (known := explained(error)) else error
            log.warning("srt.duckdb could not be renewed and shows what it showed before: %s", why)
        self._last = time.monotonic()


def path_of(lake: Lake) -> Path:
    return lake.home / "srt.duckdb"


def publish(lake: Lake) -> Path:
    """Build `srt.duckdb` for the current content of the lake and return its path. Empty tables and views are typed too.

    Models that do not compile are left out; `faults.faults()` names them.
    """
    with file_lock(lake.home / "locks" / "catalog.lock"):
        # The lake is read within the lock, so that the last file published has the latest content.
        return _build(lake)


def ensure_published(lake: Lake) -> Path:
    """Call `publish` if the file is missing, unreadable, or of another home, other content or other models."""
    if _published_state(path_of(lake)) == _state(lake, lake.views()[0]):
        return path_of(lake)
    return publish(lake)


def _build(lake: Lake) -> Path:
    target = path_of(lake)
    if target.is_dir():
        raise Damaged(target, "it is a folder")
    # Files left by killed processes: only the holder of the lock builds one.
    for left in lake.home.glob(".srt.duckdb.*"):
        left.unlink(missing_ok=True)
    temporary = lake.home / f".srt.duckdb.{uuid.uuid4().hex}"
    try:
        with database_for(temporary) as place:
            _write(lake, place)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_name(temporary.name + ".wal").unlink(missing_ok=True)
    return target


def _write(lake: Lake, place: Path) -> None:
    selects, _ = lake.views()
    con = duckdb.connect()
    try:
        con.execute("SET enable_progress_bar = false")
        version = sql_literal(STORAGE_VERSION)
        con.execute(f"ATTACH {sql_literal(str(place))} AS srt (TYPE duckdb, STORAGE_VERSION {version})")
        con.execute("USE srt")
        con.execute("BEGIN")
        for name, table in TABLES.items():
            con.execute(f'CREATE VIEW "{name}" AS {selects[name]}')
            con.execute(f'COMMENT ON VIEW "{name}" IS {sql_literal(table.description)}')
        for model in models.load().good_views:
            models.create_view(con, model)
            con.execute(f'COMMENT ON VIEW "{model.name}" IS {sql_literal(model.description)}')
        con.execute(f"CREATE TABLE {META} (home VARCHAR, published_at TIMESTAMP, state VARCHAR)")
        now = datetime.now(UTC).replace(tzinfo=None)
        con.execute(f"INSERT INTO {META} VALUES (?, ?, ?)", [str(lake.home), now, _state(lake, selects)])
        con.execute("COMMIT")
        con.execute("USE memory")
        con.execute("DETACH srt")
    finally:
        con.close()


def _state(lake: Lake, selects: dict[str, str]) -> str:
    """Hash of everything the published file depends on: home, tables with their parts or errors, models."""
    views = {model.name: model.body for model in models.load().good_views}
    return digest(home=str(lake.home), tables=selects, views=views)


def _published_state(path: Path) -> str | None:
    if what_else(path) or not path.exists():
        return None
    con = duckdb.connect()
    try:
        con.execute(f"ATTACH {sql_literal(str(path))} AS srt (TYPE duckdb, READ_ONLY)")
        row = con.execute(f"SELECT state FROM srt.{META}").fetchone()
    except duckdb.Error as error:
        log.warning("%s cannot be read and is made again: %s", path, error)
        return None
    finally:
        con.close()
    return row[0] if row else None
