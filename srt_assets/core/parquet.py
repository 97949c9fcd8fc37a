"""Writes and checks one Parquet part, with page checksums and under a name that is never used again.

Which parts are the content of a table is not decided here, but by its manifest (`lake.py`).
"""

import errno
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from srt_assets.core.errors import Damaged, disk_full
from srt_assets.core.locks import naming, sync
from srt_assets.core.tables import Table

PATTERN = "part-*.parquet"
UNFINISHED = ".part-*.writing"
# Parquet metadata do not say whether pages have checksums, so this mark does; older programs wrote no checksums.
_MARK = {b"srt:page_checksums": b"crc32"}


def write(directory: Path, table: Table, pieces: Iterable[pa.Table]) -> str:
    """Write rows as a new part with page checksums and return its name. The part is synced to disk on return."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"part-{uuid.uuid4().hex}.parquet"
    # The temporary name must not end in .parquet, or a glob of the user's would read half a file.
    temporary = directory / f".{name}.writing"
    schema = table.arrow_schema
    marked = schema.with_metadata(_MARK)
    try:
        with (
            naming(directory / name),  # Arrow's errors do not name the file
            pq.ParquetWriter(temporary, marked, compression="zstd", write_page_checksum=True) as writer,
        ):
            for piece in pieces:
                writer.write_table(conform(piece, schema), row_group_size=table.row_group)
        sync(temporary)
        temporary.replace(directory / name)
    finally:
        temporary.unlink(missing_ok=True)
    sync(directory)
    return name


def conform(data: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with exactly the columns of the schema; missing columns are null."""
    columns = [
        data.column(f.name).cast(f.type) if f.name in data.column_names else pa.nulls(len(data), f.type) for f in schema
    ]
    return pa.table(columns, schema=schema)


@contextmanager
def read_failures(path: Path) -> Iterator[None]:
    """Raise Damaged if a library cannot parse this part's bytes, or the disk cannot read them.

    Errors about memory or permissions say nothing about the part and are raised unchanged.
    """
    try:
        yield
    except MemoryError:
        raise
    except OSError as error:  # Arrow's errors about the bytes have no errno
        if error.errno not in (None, errno.EIO):
            raise
        raise Damaged(path, f"it cannot be read: {error}") from None
    except pa.ArrowException as error:
        raise Damaged(path, f"it cannot be read: {error}") from None
    except duckdb.Error as error:
        if isinstance(error, duckdb.OutOfMemoryException) or disk_full(error):
            raise
        raise Damaged(path, f"it cannot be read: {error}") from None


def check_pages(path: Path) -> None:
    """Read a whole part. Damaged if a page does not match its checksum (pages of older programs have none)."""
    with read_failures(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.metadata.num_row_groups):
            file.read_row_group(group)


def whole_row_groups(path: Path, table: Table) -> list[pa.Table]:
    """The row groups of a damaged part whose pages match their checksums. Empty if the footer of the file is lost.

    Pages of older programs have no checksums, so none of their row groups are returned.
    """
    found = []
    with suppress(Damaged), read_failures(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        columns = set(file.schema_arrow.names)
        marked = (file.metadata.metadata or {}).items() >= _MARK.items()
        # The footer has no checksum: an unknown column name may be a damaged one.
        if not marked or not columns.issubset(table.arrow_schema.names):
            return []
        for group in range(file.metadata.num_row_groups):
            with suppress(Damaged), read_failures(path):
                found.append(file.read_row_group(group))
    return found


def row_content_hash(table: Table, paths: list[Path]) -> str:
    """Hash of the rows as a multiset: independent of order, file layout and writer version. Omits volatile columns."""
    columns = ", ".join(f'"{c.name}"' for c in table.columns if c.name not in table.volatile)
    con = duckdb.connect()
    try:
        con.execute("SET enable_progress_bar = false")
        # A sum of row digests needs no sort and, unlike XOR, two equal rows do not cancel each other.
        row = con.execute(
            "SELECT count(*), sum((m >> 64)::HUGEINT), sum((m & 18446744073709551615::UHUGEINT)::HUGEINT) FROM "
            "(SELECT md5_number(to_json(t)::VARCHAR) AS m "
            f"FROM (SELECT {columns} FROM ({table.select_sql(paths)})) t)"
        ).fetchone()
    finally:
        con.close()
    assert row is not None
    return "-".join(f"{int(value or 0):x}" for value in row)
