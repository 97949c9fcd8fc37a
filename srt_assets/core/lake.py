"""The data of record: write-once Parquet parts, and a manifest per table (and partition) that says which count.

    home/lake/<table>/[<partition>/]part-<uuid>.parquet   never changed, name never used again
    home/lake/<table>/[<partition>/]_manifest.json        swapped whole; readers see the old content or the new
    home/locks/                                           one writer per table and partition

Why not one DuckDB file: a process that writes one shuts every other out, readers included.
"""

import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from srt_assets.core import manifest as manifests
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.locks import file_lock, keep_while, kept, replace_text, sync
from srt_assets.core.manifest import Manifest
from srt_assets.core.scratch import spill_into
from srt_assets.core.tables import TABLES, Table, sql_literal

# Longer than the longest query through srt.duckdb: who planned over a superseded part must still find it.
GRACE = timedelta(minutes=10)
ORPHAN_AGE = timedelta(days=1)

log = logging.getLogger(__name__)


class Lake:
    """The tables under one home. `flushed` is called when a stage that goes on has put down what it has so far."""

    def __init__(self, home: Path, flushed: "Callable[[Lake], object] | None" = None) -> None:
        self.home = Path(home).absolute()
        self.root = self.home / "lake"
        self._flushed = flushed
        self._readers = self.home / "locks" / "reading"

    # -- where things lie

    def directory(self, table: str, partition: str | None = None) -> Path:
        path = self.root / TABLES[table].name
        return path / partition if partition else path

    def partitions(self, table: str) -> list[str]:
        """Partitions that have content, sorted."""
        return sorted(p.parent.name for p in self.directory(table).glob("*=*/_manifest.json"))

    def manifest(self, table: str, partition: str | None = None) -> Manifest | None:
        """What a table or partition holds. UserError if a newer program wrote it, or it is damaged."""
        return manifests.read(self.directory(table, partition))

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

    def whole(self, table: str, partition: str | None = None) -> Manifest | None:
        """The manifest, if the content is finished and its files are there."""
        found = self.manifest(table, partition)
        if not found or not found.complete:
            return None
        directory = self.directory(table, partition)
        return found if all((directory / name).exists() for name in found.parts) else None

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
        parts = {name: self.parts(name) for name in TABLES}
        # It may read for hours, while others replace what it reads.
        if names := [path.name for paths in parts.values() for path in paths]:
            keep_while(con, self._readers, names)
        for name, table in TABLES.items():
            con.execute(f'CREATE VIEW "{name}" AS {table.select_sql(parts[name])}')
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
            sync(temporary)
            temporary.replace(directory / name)
        finally:
            temporary.unlink(missing_ok=True)
        sync(directory)
        return name

    def commit(
        self,
        table: str,
        parts: Sequence[str],
        *,
        fingerprint: Fingerprint,
        code_version: str,
        partition: str | None = None,
        complete: bool = True,
        stats: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Make these parts the content. `complete=False` says that work is left: `whole` stays None."""
        self._upgrade()
        directory = self.directory(table, partition)
        directory.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC)
        before = self.manifest(table, partition)
        superseded = dict(before.superseded) if before else {}
        for name in before.parts if before else ():
            superseded[name] = now.isoformat()
        superseded = {n: at for n, at in superseded.items() if n not in parts and (directory / n).exists()}
        paths = [directory / name for name in parts]
        manifest = Manifest(
            table=table,
            partition=partition,
            parts=tuple(parts),
            rows=sum(pq.read_metadata(path).num_rows for path in paths),
            fingerprint=fingerprint.digest,
            code_version=code_version,
            # Unfinished content is committed often and compared never: hashing it each time would cost n².
            content_hash=row_content_hash(TABLES[table], paths) if complete else "",
            complete=complete,
            written_at=now.isoformat(),
            stats=dict(stats or {}),
            inputs=dict(fingerprint.facts),
            superseded=superseded,
        )
        manifest.write(directory)
        self.forget_failure(table, partition)
        self._sweep(directory, manifest, now)
        if not complete and self._flushed:
            self._flushed(self)
        return manifest

    def _upgrade(self) -> None:
        """Before the first write to a home of an older program, bring all its manifests into this program's form.

        Every commit comes by here first, so that none writes a manifest while this goes on.
        """
        mark = self.root / "_version.json"
        if _says(mark, manifests.VERSION):
            return
        with file_lock(self.home / "locks" / "upgrade.lock"):
            if _says(mark, manifests.VERSION):
                return
            found = [path.parent for path in sorted(self.root.glob(f"*/**/{manifests.NAME}"))]
            old = [directory for directory in found if 0 < manifests.version_of(directory) < manifests.VERSION]
            for directory in old:
                manifests.upgrade(directory)
            self.root.mkdir(parents=True, exist_ok=True)
            replace_text(mark, json.dumps(manifests.VERSION))
        if old:
            what = "%s was made by an older srt-assets: %d manifests are of the new form, the old ones lie beside them"
            log.warning(what, self.home, len(old))

    def _sweep(self, directory: Path, manifest: Manifest, now: datetime) -> None:
        expired: list[Path] = []
        for path in directory.glob("part-*.parquet"):
            if path.name in manifest.parts:
                continue
            since = manifest.superseded.get(path.name)
            if since:
                old = now - datetime.fromisoformat(since) > GRACE
            else:  # written by a process that died before its commit
                old = now - datetime.fromtimestamp(path.stat().st_mtime, UTC) > ORPHAN_AGE
            expired += [path] if old else []
        read = kept(self._readers) if expired else set()
        for path in expired:
            if path.name not in read:
                path.unlink(missing_ok=True)
        for path in directory.glob(".part-*.writing"):  # by a process that was killed while it wrote
            with suppress(FileNotFoundError):  # it may get its name this moment
                if now - datetime.fromtimestamp(path.stat().st_mtime, UTC) > ORPHAN_AGE:
                    path.unlink()

    # -- failures, so that `srt status` can tell "failed" from "never made"

    def record_failure(self, table: str, partition: str | None, digest: str, message: str) -> None:
        """Remember that making this failed. `digest`: of the fingerprint that was wanted, '' if nobody could say."""
        directory = self.directory(table, partition)
        directory.mkdir(parents=True, exist_ok=True)
        facts = {"fingerprint": digest, "message": message, "at": datetime.now(UTC).isoformat()}
        replace_text(directory / "_failure.json", json.dumps(facts))

    def failure(self, table: str, partition: str | None = None) -> dict[str, str] | None:
        """The last failure since somebody last tried: fingerprint, message, at."""
        path = self.directory(table, partition) / "_failure.json"
        return json.loads(path.read_text()) if path.exists() else None

    def forget_failure(self, table: str, partition: str | None = None) -> None:
        (self.directory(table, partition) / "_failure.json").unlink(missing_ok=True)


def _says(mark: Path, version: int) -> bool:
    return mark.exists() and mark.read_text() == json.dumps(version)


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


def _conform(data: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        data.column(f.name).cast(f.type) if f.name in data.column_names else pa.nulls(len(data), f.type) for f in schema
    ]
    return pa.table(columns, schema=schema)
