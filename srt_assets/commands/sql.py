"""`srt sql`: prints the rows of one SELECT as a table, CSV or JSON. Running it safely is in `core/sql/query.py`."""

import csv
import json
import math
import sys
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, TextIO

from srt_assets.commands import terminal
from srt_assets.core.lake import Lake
from srt_assets.core.sql.query import rows_of
from srt_assets.text import printable, printable_json

FORMATS = ("table", "csv", "json")
# Most rows of a table on the terminal; csv and json are never cut.
TABLE_ROWS = 200
# A table that is wider than the terminal and has at most this many rows is transposed: one line per column.
UPRIGHT_ROWS = 6


def run(lake: Lake, query: str, format: str = "table", out: TextIO | None = None) -> None:
    """Print the rows of one SELECT as table, csv or json (one array of objects). UserError if it is not valid.

    csv and json go to a file or a pipe unchanged; on a terminal control characters are escaped.
    """
    target = out or sys.stdout
    with rows_of(lake, query) as (columns, rows):
        if format == "table":
            _print_table(columns, rows, target)
        elif format == "csv":
            _print_csv(columns, rows, target)
        else:
            _print_json(columns, rows, target)


def _print_table(columns: list[str], rows: Iterator[tuple[Any, ...]], out: TextIO) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    shown = [row for _, row in zip(range(TABLE_ROWS), rows, strict=False)]
    more = sum(1 for _ in rows)
    # Text objects, because rich would read square brackets in a str as markup.
    cells = [[terminal.text(_as_text(value)) for value in row] for row in shown]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, name in enumerate(columns):
        numeric = any(isinstance(row[place], int | float | Decimal) for row in shown)
        table.add_column(terminal.text(name), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    # In a file or a pipe the width of a table is not limited.
    console = terminal.console(file=out, width=None if terminal.is_terminal(out) else 10_000, highlight=False)
    unlimited = console.options.update(max_width=10_000)
    if 0 < len(shown) <= UPRIGHT_ROWS and Measurement.get(console, unlimited, table).maximum > console.width:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=False)
        for _ in range(len(shown) + 1):
            table.add_column(overflow="fold")
        for place, name in enumerate(columns):
            table.add_row(terminal.text(name, "dim"), *(row[place] for row in cells))
    console.print(table)
    count = len(shown) + more
    cut = f", the first {len(shown)} shown; --format csv or json gives all" if more else ""
    console.print(Text(f"{count:,} row{'' if count == 1 else 's'}{cut}"), style="dim")


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return (
            f"{value:.6g}"
            if math.isfinite(value) and value != int(value)
            else f"{value:g}"
            if abs(value) < 1e15
            else repr(value)
        )
    if isinstance(value, list | dict | tuple):
        return json.dumps(_plain(value), ensure_ascii=False)
    return str(value)


def _print_csv(columns: list[str], rows: Iterator[tuple[Any, ...]], out: TextIO) -> None:
    shown = printable if terminal.is_terminal(out) else str
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(shown, columns))
    for row in rows:
        cells = (_csv_cell(value) for value in row)
        writer.writerow([shown(cell) if isinstance(cell, str) else cell for cell in cells])


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict | tuple):
        return json.dumps(_plain(value), ensure_ascii=False)
    return value.isoformat() if isinstance(value, datetime | date | time) else value


def _print_json(columns: list[str], rows: Iterator[tuple[Any, ...]], out: TextIO) -> None:
    shown = printable_json if terminal.is_terminal(out) else str
    out.write("[")
    separator = "\n"
    for row in rows:
        record = {name: _plain(value) for name, value in zip(columns, row, strict=True)}
        out.write(separator + shown(json.dumps(record, ensure_ascii=False, allow_nan=False)))
        separator = ",\n"
    out.write("\n]\n")


def _plain(value: Any) -> Any:
    """A value for JSON: NaN and infinities become null, whole decimals int, times ISO 8601."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else str(value)
