"""The tables on disk: write-once Parquet parts, and a manifest per table (and partition) that names the current parts.

    home/lake/<table>/[<partition>/]part-<uuid>.parquet   never changed; the name is never used again
    home/lake/<table>/[<partition>/]_manifest.json        replaced atomically: readers see the old content or the new
    home/locks/                                           one writer per table and partition

Not one DuckDB file, because a process that writes to it locks out all others, readers included. What the tables contain
is in `tables.py`; how stages fill them is not decided here.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from srt_assets.core import integrity, parquet
from srt_assets.core import manifest as manifests
from srt_assets.core.errors import Damaged, UserError
from srt_assets.core.files import read_own
from srt_assets.core.hashing import Fingerprint, file_sha256
from srt_assets.core.locks import file_lock, keep_while, replace_text
from srt_assets.core.manifest import Manifest
from srt_assets.core.one_look import once_a_look
from srt_assets.core.scratch import spill_into
from srt_assets.core.sweep import sweep
from srt_assets.core.tables import TABLES, sql_literal
from srt_assets.core.upgrade import upgrade

FAILURE = "_failure.json"


@dataclass(frozen=True)
class Failure:
    """A failed attempt to make an artefact. `inputs`: the facts of its fingerprint; None from an older program."""

    fingerprint: str
    inputs: dict[str, Any] | None
    message: str


class Lake:
    """The tables under one home. `flushed` is called after each commit of an unfinished table."""

    def __init__(self, home: Path, flushed: "Callable[[Lake], object] | None" = None) -> None:
        self.home = Path(home).absolute()
        self.root = self.home / "lake"
        self._flushed = flushed
        self._readers = self.home / "locks" / "reading"
        # Parts that this object has written but not committed: (table, partition, name).
        self._loose: set[tuple[str, str | None, str]] = set()

    # -- where things lie

    def directory(self, table: str, partition: str | None = None) -> Path:
        path = self.root / TABLES[table].name
        return path / partition if partition else path

    def partitions(self, table: str) -> list[str]:
        """Partitions that have content, sorted."""
        return sorted(p.parent.name for p in self.directory(table).glob("*=*/_manifest.json"))

    @once_a_look
    def manifest(self, table: str, partition: str | None = None) -> Manifest | None:
        """The manifest of a table or partition; None if there is none. UserError if damaged or of a newer program."""
        return manifests.read(self.directory(table, partition))

    def manifests(self, table: str) -> list[Manifest]:
        """The manifests of a table: its own and those of its partitions."""
        found = [self.manifest(table), *(self.manifest(table, p) for p in self.partitions(table))]
        return [m for m in found if m is not None]

    def parts(self, table: str, partition: str | None = None) -> list[Path]:
        """The current parts of a partition or, without one, of the whole table. Damaged if a part is damaged."""
        found = self._manifests(table, partition)
        if not found and TABLES[table].is_paid:  # the manifest is lost; the next run finds the parts by their names
            return sorted(self.directory(table, partition).glob(parquet.PATTERN))
        for manifest in found:
            try:
                self._verify(manifest)
            except Damaged:
                if self._manifests(table, partition) != found:  # another process replaced the content meanwhile
                    return self.parts(table, partition)
                raise
        return [self.directory(table, m.partition) / name for m in found for name in m.parts]

    def _manifests(self, table: str, partition: str | None) -> list[Manifest]:
        if partition is None:
            return self.manifests(table)
        one = self.manifest(table, partition)
        return [one] if one else []

    def whole(self, table: str, partition: str | None = None) -> Manifest | None:
        """The manifest if the content is complete, else None. Damaged if a part is damaged."""
        found = self.manifest(table, partition)
        if not found or not found.complete:
            return None
        self._verify(found)
        return found

    def verify(self, table: str, partition: str | None = None) -> None:
        """Read every byte of a partition or, without one, of the whole table. Damaged if a part is damaged."""
        for manifest in self._manifests(table, partition):
            self._verify(manifest, deep=True)

    def _verify(self, manifest: Manifest, deep: bool = False) -> None:
        directory = self.directory(manifest.table, manifest.partition)
        integrity.verify(directory, manifest, integrity.memory_of(self.home, manifest), deep)

    # -- reading

    def source(self, table: str, partition: str | None = None) -> str:
        """The content as a typed subquery for a FROM clause; no rows if there is no content. May raise Damaged."""
        return f"({TABLES[table].select_sql(self.parts(table, partition), self.home)})"

    def views(self) -> "tuple[dict[str, str], dict[str, list[Path]]]":
        """For each table a SELECT of its current content, and the parts it reads.

        The SELECT of a damaged table fails with the name of the file and the remedy; the other tables stay readable.
        """
        selects, parts = {}, {}
        for name, table in TABLES.items():
            try:
                parts[name] = self.parts(name)
                selects[name] = table.select_sql(parts[name], self.home)
            except Damaged as error:
                parts[name] = []
                selects[name] = table.error_sql(str(error))
        return selects, parts

    def connect(self, memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
        """In-memory DuckDB with a view per table over its current content; spills under the home. Close it."""
        con = duckdb.connect()
        con.execute("SET enable_progress_bar = false")
        spill_into(con, self.home)
        if memory_limit:
            con.execute(f"SET memory_limit = {sql_literal(memory_limit)}")
        selects, parts = self.views()
        # A query may run for hours while other processes replace the parts it reads.
        if names := [path.name for paths in parts.values() for path in paths]:
            keep_while(con, self._readers, names)
        for name, select in selects.items():
            con.execute(f'CREATE VIEW "{name}" AS {select}')
        return con

    # -- writing

    @contextmanager
    def lock(self, table: str, partition: str | None = None, wait: bool = True) -> Iterator[None]:
        """Be the only writer of a table or partition. The kernel frees the lock when the process dies.

        Waits for another writer; with `wait=False` raises BlockingIOError instead.
        """
        name = f"{table}.{partition}" if partition else table
        with file_lock(self.home / "locks" / f"{name}.lock", wait):
            yield

    def write_part(self, table: str, rows: pa.Table | list[dict], partition: str | None = None) -> str:
        """Write rows as a new part and return its name. The part does not count until it is committed."""
        data = pa.Table.from_pylist(rows, schema=TABLES[table].arrow_schema) if isinstance(rows, list) else rows
        return self._new(table, partition, [data])

    def sink_part(self, con: duckdb.DuckDBPyConnection, sql: str, table: str, partition: str | None = None) -> str:
        """Write a query's result as a new part and return its name. Batches stay in Arrow, never as Python objects."""
        columns = ", ".join(f'"{c.name}"::{c.type} AS "{c.name}"' for c in TABLES[table].columns)
        batches = con.sql(f"SELECT {columns} FROM ({sql})").to_arrow_reader(TABLES[table].row_group)
        pieces = (pa.Table.from_batches([batch]) for batch in batches)
        return self._new(table, partition, pieces)

    def _new(self, table: str, partition: str | None, pieces: Iterable[pa.Table]) -> str:
        name = parquet.write(self.directory(table, partition), TABLES[table], pieces)
        self._loose.add((table, partition, name))
        return name

    def drop_loose(self) -> None:
        """Delete the parts that a failed stage wrote and did not commit. Parts of paid tables stay."""
        for table, partition, name in self._loose:
            if TABLES[table].is_paid:
                continue
            with suppress(OSError, UserError):  # the clean-up of a later commit removes what is left
                manifest = self.manifest(table, partition)
                if manifest is None or name not in manifest.parts:
                    (self.directory(table, partition) / name).unlink(missing_ok=True)
        self._loose.clear()

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
        superseded: Sequence[str] = (),
    ) -> Manifest:
        """Make these parts the content. `complete=False`: work is left, and `whole` keeps returning None.

        `superseded`: parts that no manifest names and whose rows are now in `parts`. The parts of the previous manifest
        are superseded in any case.
        """
        upgrade(self.home)
        directory = self.directory(table, partition)
        directory.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC)
        before = self.manifest(table, partition)
        gone = dict(before.superseded) if before else {}
        for name in (*(before.parts if before else ()), *superseded):
            gone[name] = now.isoformat()
        # No time lies in the future: after a clock was set back, such a part would be kept until that time.
        gone = {n: min(at, now.isoformat()) for n, at in gone.items() if n not in parts and (directory / n).exists()}
        paths = [directory / name for name in parts]
        # Parts of an earlier commit keep their sums from then, so that later damage is found.
        known = before.sums if before else {}
        manifest = Manifest(
            table=table,
            partition=partition,
            parts=tuple(parts),
            rows=sum(pq.read_metadata(path).num_rows for path in paths),
            fingerprint=fingerprint.digest,
            code_version=code_version,
            # Unfinished content is committed often and never compared: hashing all of it each time would be quadratic.
            content_hash=parquet.row_content_hash(TABLES[table], paths) if complete else "",
            complete=complete,
            written_at=now.isoformat(),
            stats=dict(stats or {}),
            inputs=dict(fingerprint.facts),
            superseded=gone,
            sums={name: known.get(name) or file_sha256(directory / name) for name in parts},
        )
        manifest.write(directory)
        self._loose -= {(table, partition, name) for name in parts}
        self.forget_failure(table, partition)
        sweep(directory, manifest, self._readers)
        if not complete and self._flushed:
            self._flushed(self)
        return manifest

    # -- failures, by which `srt status` distinguishes "failed" from "missing"

    def record_failure(self, table: str, partition: str | None, want: Fingerprint | None, message: str) -> None:
        """Store that an attempt failed. `want`: the fingerprint the artefact should have got; None if unknown."""
        directory = self.directory(table, partition)
        directory.mkdir(parents=True, exist_ok=True)
        facts = {
            "fingerprint": want.digest if want else "",
            "inputs": want.facts if want else {},
            "message": message,
            "at": datetime.now(UTC).isoformat(),
        }
        replace_text(directory / FAILURE, json.dumps(facts))

    def failure(self, table: str, partition: str | None = None) -> Failure | None:
        """The failure of the last attempt; None if there is none. Damaged if the note cannot be read."""
        path = self.directory(table, partition) / FAILURE
        try:
            found = json.loads(read_own(path))
            fingerprint, message, inputs = found["fingerprint"], found["message"], found.get("inputs")
            return Failure(str(fingerprint), None if inputs is None else dict(inputs), str(message))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise Damaged(path, f"{type(error).__name__}: {error}") from None

    def forget_failure(self, table: str, partition: str | None = None) -> None:
        path = self.directory(table, partition) / FAILURE
        try:
            path.unlink(missing_ok=True)
        except IsADirectoryError:
            raise Damaged(path, "it is a folder") from None
