"""The data of record: write-once Parquet parts, and a manifest per table (and partition) that says which count.

    home/lake/<table>/[<partition>/]part-<uuid>.parquet   never changed, name never used again
    home/lake/<table>/[<partition>/]_manifest.json        swapped whole; readers see the old content or the new
    home/locks/                                           one writer per table and partition

Why not one DuckDB file: a process that writes one shuts every other out, readers included.
"""

import fcntl
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from srt_assets.core.hashing import Fingerprint
from srt_assets.core.scratch import spill_into
from srt_assets.core.tables import TABLES, Table, sql_literal

SCHEMA_VERSION = 1
# Longer than the longest query: a reader that planned over a superseded part must still find it.
GRACE = timedelta(minutes=10)
ORPHAN_AGE = timedelta(days=1)
# A wait shorter than this is not worth a word.
SILENT_S = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """What a table (or one partition) holds, and the inputs its fingerprint was made of.

    `content_hash` is of the rows, in no order, without volatile columns; '' while the content is unfinished.
    """

    table: str
    partition: str | None
    parts: tuple[str, ...]
    rows: int
    fingerprint: str
    code_version: str
    content_hash: str
    complete: bool
    written_at: str
    stats: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    superseded: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


class Lake:
    """The tables under one home. `after_commit` is called whenever content changed: it republishes the catalog."""

    def __init__(self, home: Path, after_commit: "Callable[[Lake], object] | None" = None) -> None:
        self.home = Path(home).absolute()
        self.root = self.home / "lake"
        self._after_commit = after_commit

    # -- where things lie

    def directory(self, table: str, partition: str | None = None) -> Path:
        path = self.root / TABLES[table].name
        return path / partition if partition else path

    def partitions(self, table: str) -> list[str]:
        """Partitions that have content, sorted."""
        return sorted(p.parent.name for p in self.directory(table).glob("*=*/_manifest.json"))

    def manifest(self, table: str, partition: str | None = None) -> Manifest | None:
        path = self.directory(table, partition) / "_manifest.json"
        try:
            facts = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        facts["parts"] = tuple(facts["parts"])
        return Manifest(**facts)

    def manifests(self, table: str) -> list[Manifest]:
        """The manifests of a table: its own and those of its partitions."""
        found = [self.manifest(table), *(self.manifest(table, p) for p in self.partitions(table))]
        return [m for m in found if m is not None]

    def parts(self, table: str, partition: str | None = None) -> list[Path]:
        """The files that are the content now. Without a partition: of the whole table."""
        if partition is not None:
            one = self.manifest(table, partition)
            manifests = [one] if one else []
        else:
            manifests = self.manifests(table)
        return [self.directory(table, m.partition) / name for m in manifests for name in m.parts]

    def is_current(self, table: str, fingerprint: str, partition: str | None = None) -> bool:
        """True if the finished content was made from exactly these inputs and its files are still there."""
        found = self.manifest(table, partition)
        if not found or not found.complete or found.fingerprint != fingerprint:
            return False
        return all((self.directory(table, partition) / name).exists() for name in found.parts)

    # -- reading

    def source(self, table: str, partition: str | None = None) -> str:
        """The content as a subquery for a FROM clause, every column typed; works when there is none."""
        return f"({TABLES[table].select_sql(self.parts(table, partition))})"

    def connect(self, memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
        """In-memory DuckDB with a view per table over its present content, spilling under the home. Close it."""
        con = duckdb.connect()
        con.execute("SET enable_progress_bar = false")
        spill_into(con, self.home)
        if memory_limit:
            con.execute(f"SET memory_limit = {sql_literal(memory_limit)}")
        for name, table in TABLES.items():
            con.execute(f'CREATE VIEW "{name}" AS {table.select_sql(self.parts(name))}')
        return con

    # -- writing

    @contextmanager
    def lock(self, table: str, partition: str | None = None, wait: bool = True) -> Iterator[None]:
        """Be the only writer of a table or partition. The kernel frees it when a process dies.

        Waits for another writer, or raises BlockingIOError.
        """
        name = f"{table}.{partition}" if partition else table
        with file_lock(self.home / "locks" / f"{name}.lock", wait):
            yield

    def write_part(self, table: str, rows: pa.Table | list[dict], partition: str | None = None) -> str:
        """Write rows as a new part and give its name. It is content only once a commit names it."""
        schema = TABLES[table].arrow_schema
        data = pa.Table.from_pylist(rows, schema=schema) if isinstance(rows, list) else _conform(rows, schema)
        return self._new_part(table, partition, lambda path: pq.write_table(data, path, compression="zstd"))

    def sink_part(self, con: duckdb.DuckDBPyConnection, sql: str, table: str, partition: str | None = None) -> str:
        """Write a query's result as a new part, inside DuckDB: rows never pass through Python."""
        columns = ", ".join(f'"{c.name}"::{c.type} AS "{c.name}"' for c in TABLES[table].columns)

        def write(path: Path) -> None:
            target = sql_literal(str(path))
            con.execute(f"COPY (SELECT {columns} FROM ({sql})) TO {target} (FORMAT parquet, COMPRESSION zstd)")

        return self._new_part(table, partition, write)

    def _new_part(self, table: str, partition: str | None, write: Callable[[Path], object]) -> str:
        directory = self.directory(table, partition)
        directory.mkdir(parents=True, exist_ok=True)
        name = f"part-{uuid.uuid4().hex}.parquet"
        # The temporary name must not end in .parquet: a glob of somebody's would read half a file.
        temporary = directory / f".{name}.writing"
        try:
            write(temporary)
            _sync(temporary)
            temporary.replace(directory / name)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(directory)
        return name

    def commit(
        self,
        table: str,
        parts: list[str],
        *,
        fingerprint: str,
        code_version: str,
        partition: str | None = None,
        complete: bool = True,
        stats: dict[str, Any] | None = None,
    ) -> Manifest:
        """Make these parts the content. `complete=False` says that work is left: `is_current` stays false."""
        directory = self.directory(table, partition)
        directory.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC)
        before = self.manifest(table, partition)
        superseded = dict(before.superseded) if before else {}
        for name in before.parts if before else ():
            superseded[name] = now.isoformat()
        kept = {n: at for n, at in superseded.items() if n not in parts and (directory / n).exists()}
        paths = [directory / name for name in parts]
        manifest = Manifest(
            table=table,
            partition=partition,
            parts=tuple(parts),
            rows=sum(pq.read_metadata(path).num_rows for path in paths),
            fingerprint=fingerprint,
            code_version=code_version,
            # Unfinished content is committed often and compared never: hashing it each time would cost n².
            content_hash=row_content_hash(TABLES[table], paths) if complete else "",
            complete=complete,
            written_at=now.isoformat(),
            stats=stats or {},
            inputs=fingerprint.facts if isinstance(fingerprint, Fingerprint) else {},
            superseded=kept,
        )
        _replace_text(directory / "_manifest.json", json.dumps(asdict(manifest), indent=1, default=str))
        (directory / "_failure.json").unlink(missing_ok=True)
        self._sweep(directory, manifest, now)
        if self._after_commit:
            self._after_commit(self)
        return manifest

    def _sweep(self, directory: Path, manifest: Manifest, now: datetime) -> None:
        for path in directory.glob("part-*.parquet"):
            if path.name in manifest.parts:
                continue
            since = manifest.superseded.get(path.name)
            if since:
                expired = now - datetime.fromisoformat(since) > GRACE
            else:  # written by a process that died before its commit
                expired = now - datetime.fromtimestamp(path.stat().st_mtime, UTC) > ORPHAN_AGE
            if expired:
                path.unlink(missing_ok=True)
        for path in directory.glob(".part-*.writing"):  # by a process that was killed while it wrote
            with suppress(FileNotFoundError):  # it may get its name this moment
                if now - datetime.fromtimestamp(path.stat().st_mtime, UTC) > ORPHAN_AGE:
                    path.unlink()

    # -- failures, so that `srt status` can tell "failed" from "never made"

    def record_failure(self, table: str, partition: str | None, fingerprint: str, message: str) -> None:
        directory = self.directory(table, partition)
        directory.mkdir(parents=True, exist_ok=True)
        facts = {"fingerprint": fingerprint, "message": message, "at": datetime.now(UTC).isoformat()}
        _replace_text(directory / "_failure.json", json.dumps(facts))

    def failure(self, table: str, partition: str | None = None) -> dict[str, str] | None:
        """The last failure since the last commit: fingerprint, message, at."""
        path = self.directory(table, partition) / "_failure.json"
        return json.loads(path.read_text()) if path.exists() else None


def row_content_hash(table: Table, paths: list[Path]) -> str:
    """Hash of the rows as a multiset: no order, no file layout, no writer version. Volatile columns do not count."""
    columns = ", ".join(f'"{c.name}"' for c in table.columns if c.name not in table.volatile)
    con = duckdb.connect()
    try:
        con.execute("SET enable_progress_bar = false")
        # A sum of row digests needs no sort, and unlike XOR two equal rows do not cancel out.
        row = con.execute(
            "SELECT count(*), sum((m >> 64)::HUGEINT), sum((m & 18446744073709551615::UHUGEINT)::HUGEINT) FROM "
            "(SELECT md5_number(to_json(t)::VARCHAR) AS m "
            f"FROM (SELECT {columns} FROM ({table.select_sql(paths)})) t)"
        ).fetchone()
    finally:
        con.close()
    assert row is not None
    return "-".join(f"{int(value or 0):x}" for value in row)


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[None]:
    """An exclusive lock between processes, freed by the kernel when its holder dies. Says so once if it waits long.

    Raises BlockingIOError if another has it and we are not to wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        patience = time.monotonic() + SILENT_S
        while not try_lock(file):
            if not wait:
                raise BlockingIOError(f"another process is writing {path.stem}")
            if time.monotonic() > patience:
                # A warning, for nothing less is shown on a terminal.
                log.warning("waiting for another process that is writing %s", path.stem)
                fcntl.flock(file, fcntl.LOCK_EX)
                break
            time.sleep(0.02)
        yield


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file for this process, until it is closed or the process dies; False if another has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _conform(data: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        data.column(f.name).cast(f.type) if f.name in data.column_names else pa.nulls(len(data), f.type) for f in schema
    ]
    return pa.table(columns, schema=schema)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(text)
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)
