"""DuckDB with bounded memory, and rows made in Python put into its tables piece by piece: what is large lies there,
where it can be spilled.
"""

from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa

from srt_assets.core.lake import Lake

# Megabytes of a connection, of which a run has two; more for each million records beyond the first, because keys that
# are compared must all be there.
_MEMORY, _MORE = 384, 200
# Each needs some of it, and Python is what takes the time.
_THREADS = 2
# Rows that are Python objects at the same time.
ROWS = 2000


def bounded(lake: Lake) -> duckdb.DuckDBPyConnection:
    """A connection to the lake that spills texts which do not fit into a few hundred megabytes. Close it."""
    records = lake.manifest("raw_records")
    millions = max(0, records.rows - 1) // 1_000_000 if records else 0
    con = lake.connect(f"{_MEMORY + _MORE * millions}MB")
    con.execute(f"SET threads = {_THREADS}")
    return con


def fill(con: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    """Append rows to a table of this connection, columns by name."""
    with con.cursor() as cursor:  # what the connection itself has begun to read goes on
        cursor.register("arrived", rows)
        cursor.execute(f"INSERT INTO {table} BY NAME FROM arrived")


class Filler:
    """Appends single rows to a table, many at a time. Use it in a `with` block, or `flush` it."""

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
