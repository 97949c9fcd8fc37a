"""One Parquet part: written once under a name that is never used again, with checksums; read back row by row hash.

Which parts are the content of a table is not decided here, but by its manifest (`lake.py`).
"""

import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from srt_assets.core.locks import sync
from srt_assets.core.tables import Table

PATTERN = "part-*.parquet"
UNFINISHED = ".part-*.writing"
# Parquet does not say whether pages have checksums; older programs wrote none.
_MARK = {b"srt:page_checksums": b"crc32"}


def write(directory: Path, table: Table, pieces: Iterable[pa.Table]) -> str:
    """Write rows as a new part, its pages with checksums, and give its name. It is on disk when this returns."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"part-{uuid.uuid4().hex}.parquet"
    # The temporary name must not end in .parquet: somebody's glob would read half a file.
    temporary = directory / f".{name}.writing"
    schema = table.arrow_schema
    try:
        marked = schema.with_metadata(_MARK)
        with pq.ParquetWriter(temporary, marked, compression="zstd", write_page_checksum=True) as writer:
            for piece in pieces:
                writer.write_table(conform(piece, schema), row_group_size=table.row_group)
        sync(temporary)
        temporary.replace(directory / name)
    except OSError as error:
        error.filename = error.filename or str(directory / name)  # Arrow does not say which
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync(directory)
    return name


def conform(data: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with exactly the columns of the schema; those that are not there are null."""
    columns = [
        data.column(f.name).cast(f.type) if f.name in data.column_names else pa.nulls(len(data), f.type) for f in schema
    ]
    return pa.table(columns, schema=schema)


def whole_row_groups(path: Path, table: Table) -> list[pa.Table]:
    """What is certain of a damaged part: the row groups whose pages match their checksums. None if its end is gone.

    Pages that older programs wrote have no checksum, so nobody can say which of them are right: none are.
    """
    found = []
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            columns = set(file.schema_arrow.names)
            marked = (file.metadata.metadata or {}).items() >= _MARK.items()
            # The footer has no checksum: a column of an unknown name may be one whose name was damaged.
            if not marked or not columns.issubset(table.arrow_schema.names):
                return []
            for group in range(file.metadata.num_row_groups):
                with suppress(pa.ArrowException, OSError):
                    found.append(file.read_row_group(group))
    except (pa.ArrowException, OSError):
        return []
    return found


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
