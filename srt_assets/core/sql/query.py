"""One SELECT of a person over `srt.duckdb`: locked down, never in the way of a writer, printed well.

The connection may read the published views and the lake's parts under them, nothing else: no other file, no write, no
attach, no extension, no secret, no change of configuration. Names of Python variables are not looked up.
"""

import csv
import json
import math
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from threading import Thread
from typing import Any, TextIO, TypeVar

import duckdb

from srt_assets.core.duck_paths import exactly
from srt_assets.core.errors import StageError, UserError, disk_full
from srt_assets.core.lake import Lake
from srt_assets.core.scratch import spill_into
from srt_assets.core.sql import models
from srt_assets.core.sql.catalog import ensure_published
from srt_assets.core.tables import sql_literal
from srt_assets.core.terminal import printable

FORMATS = ("table", "csv", "json")
# A person reads no more on a terminal; csv and json are never cut.
TABLE_ROWS = 200
# So few rows stand side by side, a column a line, where a line each would be wider than the terminal.
UPRIGHT_ROWS = 6
_CHUNK = 10_000
_T = TypeVar("_T")


def run(lake: Lake, query: str, format: str = "table", out: TextIO | None = None) -> None:
    """Print the rows of one SELECT as table, csv or json (one array of objects). UserError: what is wrong with it."""
    target = out or sys.stdout
    with rows_of(lake, query) as (columns, rows):
        if format == "table":
            _print_table(columns, rows, target)
        elif format == "csv":
            _print_csv(columns, rows, target)
        else:
            _print_json(columns, rows, target)


@contextmanager
def rows_of(lake: Lake, query: str) -> Iterator[tuple[list[str], Iterator[tuple[Any, ...]]]]:
    """Column names and a stream of rows of one SELECT. Errors while the rows are read have their remedy too."""
    con = connect_locked(lake)
    try:
        _check_one_select(con, query)
        with _explained():
            cursor = _interruptible(con, con.execute, query)
            columns = [d[0] for d in cursor.description or []]
        with _explained():
            yield _distinct(columns), _stream(cursor)
    finally:
        con.close()


def connect_locked(lake: Lake) -> duckdb.DuckDBPyConnection:
    """In-memory DuckDB that sees the published catalog (as `srt`, in use) and may do nothing but read it. Close it."""
    path = ensure_published(lake)
    con = duckdb.connect()
    for setting in ("enable_progress_bar", "python_enable_replacements", "allow_persistent_secrets"):
        con.execute(f"SET {setting} = false")
    con.execute("SET autoinstall_known_extensions = false")
    con.execute("SET autoload_known_extensions = false")
    spill_into(con, lake.home)
    con.execute(f"ATTACH {sql_literal(str(path))} AS srt (TYPE duckdb, READ_ONLY)")
    con.execute("USE srt")
    # What the published views read is a pattern where the home's name has characters of one.
    allowed = ", ".join(sql_literal(path) for path in (str(lake.root), exactly(lake.root)))
    con.execute(f"SET allowed_directories = [{allowed}]")
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")
    return con


def _check_one_select(con: duckdb.DuckDBPyConnection, query: str) -> None:
    remedy = "give exactly one SELECT; changes are made by `srt run`, never by a query"
    if query != query.encode(errors="replace").decode():
        raise UserError("the query is not UTF-8", "write it in UTF-8")
    with _explained():
        statements = con.extract_statements(query)
    if len(statements) > 1 and query.lstrip()[:5].upper() == "PIVOT":
        # DuckDB asks for the values first, in a statement of its own.
        raise UserError("a PIVOT must say which values become columns", "write PIVOT … ON outcome IN ('kept', …) …")
    if len(statements) != 1:
        raise UserError(f"{len(statements)} statements, but srt sql takes one", remedy)
    kind = statements[0].type
    if kind != duckdb.StatementType.SELECT:
        raise UserError(f"srt sql takes a SELECT, not {str(kind).removeprefix('StatementType.')}", remedy)
    # PRAGMA and CALL are counted as SELECT above; only a real SELECT has a parse tree to serialize.
    row = con.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchone()
    parsed = json.loads(row[0]) if row else {"error": True}
    if parsed["error"]:
        raise UserError(f"srt sql takes a SELECT: {parsed.get('error_message', 'this is none')}", remedy)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except duckdb.PermissionException as error:
        raise UserError(f"not allowed: {error}", "a query reads the tables and views of srt.duckdb only") from error
    except duckdb.CatalogException as error:
        for name, wrong in models.load().broken.items():
            if f"with name {name} " in str(error):
                raise UserError(f"there is no {name}: {wrong.message}", wrong.remedy) from error
        raise UserError(str(error), "`srt sql 'SHOW TABLES'` lists every table and view") from error
    except duckdb.IOException as error:
        # Superseded parts stay for a while, not for ever.
        remedy = "its data were replaced while it ran: ask again"
        raise disk_full(error) or StageError(str(error), remedy) from error
    except duckdb.Error as error:
        raise UserError(str(error), "correct the query") from error


def _stream(cursor: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while chunk := _interruptible(cursor, cursor.fetchmany, _CHUNK):
        yield from chunk


def _interruptible(con: duckdb.DuckDBPyConnection, call: Callable[..., _T], *arguments: Any) -> _T:
    """The result of a call into DuckDB, which Ctrl-C stops: on the main thread DuckDB looks at signals too seldom."""
    result: Future[_T] = Future()

    def work() -> None:
        if result.set_running_or_notify_cancel():
            try:
                result.set_result(call(*arguments))
            except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
                result.set_exception(error)

    try:
        Thread(target=work, daemon=True).start()
        return result.result()
    except KeyboardInterrupt:
        # Again and again: DuckDB forgets an interrupt that comes before its query has begun.
        while not (result.cancel() or result.done()):
            con.interrupt()
            wait([result], 0.05)
        raise


def _distinct(columns: list[str]) -> list[str]:
    """Column names made distinct (`a`, `a_1`): an object of JSON has each key once."""
    seen: set[str] = set()
    out = []
    for name in columns:
        unique, n = name, 0
        while unique in seen:
            n += 1
            unique = f"{name}_{n}"
        seen.add(unique)
        out.append(unique)
    return out


# -- output


def _print_table(columns: list[str], rows: Iterator[tuple[Any, ...]], out: TextIO) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    shown = [row for _, row in zip(range(TABLE_ROWS), rows, strict=False)]
    more = sum(1 for _ in rows)
    # Text, not markup: prompts are full of square brackets.
    cells = [[Text(printable(_as_text(value))) for value in row] for row in shown]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, name in enumerate(columns):
        numeric = any(isinstance(row[place], int | float | Decimal) for row in shown)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    # Written to a file or a pipe, a table is as wide as it needs to be.
    console = Console(file=out, width=None if out.isatty() else 10_000, highlight=False)
    unlimited = console.options.update(max_width=10_000)
    if 0 < len(shown) <= UPRIGHT_ROWS and Measurement.get(console, unlimited, table).maximum > console.width:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=False)
        for _ in range(len(shown) + 1):
            table.add_column(overflow="fold")
        for place, name in enumerate(columns):
            table.add_row(Text(name, "dim"), *(row[place] for row in cells))
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
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_csv_cell(value) for value in row])


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict | tuple):
        return json.dumps(_plain(value), ensure_ascii=False)
    return value.isoformat() if isinstance(value, datetime | date | time) else value


def _print_json(columns: list[str], rows: Iterator[tuple[Any, ...]], out: TextIO) -> None:
    out.write("[")
    separator = "\n"
    for row in rows:
        record = {name: _plain(value) for name, value in zip(columns, row, strict=True)}
        out.write(separator + json.dumps(record, ensure_ascii=False, allow_nan=False))
        separator = ",\n"
    out.write("\n]\n")


def _plain(value: Any) -> Any:
    """A value as JSON has it: NaN and infinities are null, whole decimals stay whole, times are ISO 8601."""
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
