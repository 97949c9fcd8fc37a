"""DuckDB connections with bounded memory, and appending rows made in Python to their tables in pieces.

Large intermediate data are kept in these tables, which DuckDB can spill to disk. What they contain is not decided here.
"""

from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa

from srt_assets.core.lake import Lake

# Memory of a connection in megabytes (a run has two connections), and more for each million records beyond the first,
# because a join holds all keys in memory.
_MEMORY, _MORE = 384, 200
# Each thread needs some of the memory, and more threads would not help: most of the time is spent in Python.
_THREADS = 2
# Rows held as Python objects at a time.
ROWS = 2000


def bounded(lake: Lake) -> duckdb.DuckDBPyConnection:
    """A connection to the lake that spills to disk above a few hundred megabytes of memory. Close it."""
    records = lake.manifest("raw_records")
    millions = max(0, records.rows - 1) // 1_000_000 if records else 0
    con = lake.connect(f"{_MEMORY + _MORE * millions}MB")
    con.execute(f"SET threads = {_THREADS}")
    return con


def fill(con: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    """Append rows to a table of this connection, columns by name."""
    with con.cursor() as cursor:  # a cursor of its own does not interrupt a result that the connection is reading
        cursor.register("arrived", rows)
        cursor.execute(f"INSERT INTO {table} BY NAME FROM arrived")


class Filler:
    """Buffers single rows and appends them to a table in pieces. Use it in a `with` block, or call `flush`."""

    def __init__(self, con: duckdb.DuckDBPyConnection, table: str, schema: pa.Schema) -> None:
        self._con, self._table, self._schema = con, table, schema
        self._rows: list[Mapping[str, Any]] = []

    def __enter__(self) -> "Filler":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def add(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= ROWS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            fill(self._con, self._table, pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []
