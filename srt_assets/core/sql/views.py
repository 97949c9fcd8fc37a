"""Rows, columns and column lineage of the SQL models for the UI, and the rows that fail a test."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import duckdb
import sqlglot
from sqlglot.errors import SqlglotError
from sqlglot.lineage import lineage
from sqlglot.schema import MappingSchema

from srt_assets.core import stages  # noqa: F401 - importing the stages adds their tables to TABLES
from srt_assets.core.hashing import digest
from srt_assets.core.lake import Lake
from srt_assets.core.sql import models
from srt_assets.core.tables import TABLES, Column, sql_literal

SAMPLE_ROWS = 5
SAMPLE_CHARACTERS = 120
Lineage = dict[str, list[tuple[str, str, str]]]
"""For each column the (kind, table, column) it is computed from; kind is ref or source."""


@dataclass(frozen=True)
class Seen:
    """The current content of a model. `sample`: its first rows, long texts cut."""

    name: str
    rows: int
    columns: list[Column]
    lineage: Lineage
    version: str
    sample: list[dict[str, Any]]


def connect(lake: Lake) -> duckdb.DuckDBPyConnection:
    """In-memory DuckDB with the lake's tables and every model that compiles as a view. Close it."""
    con = lake.connect()
    for model in models.load().good_views:
        models.create_view(con, model)
    return con


def look(lake: Lake, names: list[str]) -> Iterator[Seen]:
    """The content of the named models, in the order given. Models that do not compile are left out."""
    project = models.load()
    con = connect(lake)
    try:
        schemas = {t: {c.name: c.type for c in table.columns} for t, table in TABLES.items()}
        for model in project.good_views:
            schemas[model.name] = dict(
                con.execute(f'SELECT column_name, column_type FROM (DESCRIBE "{model.name}")').fetchall()
            )

        @cache
        def lineage_of(name: str) -> Lineage:
            return column_lineage(project.models[name], schemas)

        for name in (name for name in names if name in schemas):
            row = con.execute(f'SELECT count(*) FROM "{name}"').fetchone()
            assert row is not None
            columns = [Column(c, kind, _meaning(name, c, lineage_of)) for c, kind in schemas[name].items()]
            sample = _sample(con, name, schemas[name])
            yield Seen(name, row[0], columns, lineage_of(name), _version(lake, project, name), sample)
    finally:
        con.close()


def _sample(con: duckdb.DuckDBPyConnection, name: str, schema: dict[str, str]) -> list[dict[str, Any]]:
    shown = [f'left("{c}", {SAMPLE_CHARACTERS})' if kind == "VARCHAR" else f'"{c}"' for c, kind in schema.items()]
    rows = con.execute(f'SELECT {", ".join(shown)} FROM "{name}" LIMIT {SAMPLE_ROWS}').fetchall()
    return [dict(zip(schema, row, strict=True)) for row in rows]


def _version(lake: Lake, project: models.Project, name: str) -> str:
    """A hash that changes when the view may have other rows: of its SQL and of the content of the tables it reads.

    It is computed from stored hashes, because reading every row of a view over millions of texts would take minutes.
    """
    under = sorted(_tables(project, name))
    content = {t: sorted(m.content_hash or m.fingerprint for m in lake.manifests(t)) for t in under}
    return digest(sql=models.code_version(project.models[name], project), content=content)[:16]


def _tables(project: models.Project, name: str) -> set[str]:
    if name in TABLES:
        return {name}
    model = project.models[name]
    return set(model.sources).union(*(_tables(project, ref) for ref in model.refs))


def _meaning(name: str, column: str, lineage_of: Callable[[str], Lineage]) -> str:
    """The description of a column: the model's own, else that of the input columns if they all have the same."""
    if name in TABLES:
        return next((c.description for c in TABLES[name].columns if c.name == column), "")
    said = models.load().models[name].columns
    if column in said:
        return said[column]
    told = {_meaning(table, of, lineage_of) for _, table, of in lineage_of(name).get(column, [])}
    return told.pop() if len(told) == 1 else ""


def column_lineage(model: models.Model, schemas: dict[str, dict[str, str]]) -> Lineage:
    """The columns of the direct inputs that each column is computed from; {} if sqlglot cannot analyze the SQL."""
    inputs = {**dict.fromkeys(model.refs, "ref"), **dict.fromkeys(model.sources, "source")}
    known: dict[str, object] = {t: c for t, c in schemas.items() if t in inputs}
    found: Lineage = {}
    try:
        tree = sqlglot.parse_one(model.sql(), read="duckdb")
        schema = MappingSchema(known, dialect="duckdb")
        for column in schemas[model.name]:
            deps = set()
            for node in lineage(column, tree, schema=schema, dialect="duckdb").walk():
                table = node.expression.name if isinstance(node.expression, sqlglot.exp.Table) else ""
                if table in inputs:
                    deps.add((inputs[table], table, node.name.rsplit(".", 1)[-1].strip('"')))
            found[column] = sorted(d for d in deps if d[2] in schemas[d[1]])
    except SqlglotError:
        return {}
    return {column: deps for column, deps in found.items() if deps}


def failing_rows(lake: Lake, test: str, student: str | None = None) -> tuple[int, list[dict[str, Any]]]:
    """The number of rows that a test returns (with `student`: only this student's), and the first few rows.

    UserError with file and line if the test does not compile.
    """
    if error := models.load().broken.get(test):
        raise error
    con = connect(lake)
    try:
        models.create_view(con, models.load().tests[test], "failing rows")
        found = 'FROM "failing rows"'
        columns = [d[0] for d in con.execute(f"{found} LIMIT 0").description or []]
        if student is not None and "student" in columns:  # tests of shared assets have no column student
            found += f" WHERE student = {sql_literal(student)}"
        count = con.execute(f"SELECT count(*) {found}").fetchone()
        sample = con.execute(f"{found} LIMIT {SAMPLE_ROWS}").fetchall()
        rows = [{n: str(v) for n, v in zip(columns, r, strict=True)} for r in sample]
    finally:
        con.close()
    return (count[0] if count else 0), rows
