"""Rows made in Python, put into a DuckDB table piece by piece: what is large lies there, where it can be spilled."""

from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa

# Rows that are Python objects at the same time.
ROWS = 2000


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
