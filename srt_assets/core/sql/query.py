"""Runs one SELECT of a user over `srt.duckdb`, in a restricted connection that blocks no writer.

The connection may read the published views and the lake's parts, and nothing else: no other file, no write, no attach,
no extension, no secret, no change of configuration. Python variables are not visible to it.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from threading import Thread
from typing import Any, TypeVar

import duckdb

from srt_assets.core.duck_paths import exactly
from srt_assets.core.errors import StageError, UserError, damage, disk_full
from srt_assets.core.lake import Lake
from srt_assets.core.scratch import spill_into
from srt_assets.core.sql import models
from srt_assets.core.sql.catalog import ensure_published
from srt_assets.core.tables import sql_literal

_CHUNK = 10_000
_T = TypeVar("_T")


@contextmanager
def rows_of(lake: Lake, query: str) -> Iterator[tuple[list[str], Iterator[tuple[Any, ...]]]]:
    """Column names and a stream of rows of one SELECT. UserError or StageError, also while rows are read."""
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
    """In-memory DuckDB with the published catalog attached as `srt`, which it can only read. Close it."""
    path = ensure_published(lake)
    con = duckdb.connect()
    for setting in ("enable_progress_bar", "python_enable_replacements", "allow_persistent_secrets"):
        con.execute(f"SET {setting} = false")
    con.execute("SET autoinstall_known_extensions = false")
    con.execute("SET autoload_known_extensions = false")
    spill_into(con, lake.home)
    con.execute(f"ATTACH {sql_literal(str(path))} AS srt (TYPE duckdb, READ_ONLY)")
    con.execute("USE srt")
    # If the home's path has pattern characters, the published views read an escaped pattern: allow both.
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
        # DuckDB finds the values in an extra statement first.
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
        # Superseded parts are deleted after a while.
        remedy = "its data were replaced while it ran: ask again"
        raise disk_full(error) or StageError(str(error), remedy) from error
    except duckdb.Error as error:
        raise damage(error) or UserError(str(error), "correct the query") from error


def _stream(cursor: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while chunk := _interruptible(cursor, cursor.fetchmany, _CHUNK):
        yield from chunk


def _interruptible(con: duckdb.DuckDBPyConnection, call: Callable[..., _T], *arguments: Any) -> _T:
    """Run a call into DuckDB in a thread, so that Ctrl-C can stop it: DuckDB checks for signals too rarely."""
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
        # Repeated, because DuckDB drops an interrupt that comes before its query has begun.
        while not (result.cancel() or result.done()):
            con.interrupt()
            wait([result], 0.05)
        raise


def _distinct(columns: list[str]) -> list[str]:
    """Column names made distinct (`a`, `a_1`), because each key of a JSON object must be unique."""
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
