"""The models and tests of `dbt_like_sql/`: found, read, checked, put in order, rendered.

A strict subset of dbt, so that real dbt can run the same folder: one SELECT per file, named after the file; the only
Jinja is `{{ ref('model') }}` and `{{ source('lake', 'table') }}`. Leading `--` lines describe the model;
`-- @key: value` lines carry facts (`@column NAME: text` describes a column). Whatever else is an error with file:line.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import duckdb

import srt_assets
from srt_assets.core.errors import UserError, nearest
from srt_assets.core.hashing import fingerprint
from srt_assets.core.tables import TABLES

SOURCE = "lake"
# Written by the stage that runs it, not a view: its rows are a table of the lake under the same name.
RULE = "decisions"
# What the published catalog says of itself.
META = "srt_meta"

_JINJA = re.compile(r"\{\{(?P<call>.*?)\}\}|(?P<bad>\{%|\{#|\{\{|\}\})", re.DOTALL)
_NAME = r"""\s*(?:'(\w+)'|"(\w+)")\s*"""
_REF = re.compile(rf"\s*ref\({_NAME}\)\s*")
_SOURCE = re.compile(rf"\s*source\({_NAME},{_NAME}\)\s*")
_NAME_OF_MODEL = re.compile(r"[a-z_][a-z0-9_]*")
_LINE = re.compile(r"^LINE (\d+):", re.MULTILINE)
_FACT = re.compile(r"@(?P<key>\w+)(?:\s+(?P<of>\w+))?:\s*(?P<value>.*)")


@dataclass(frozen=True)
class Model:
    """One file: a model, or a test whose rows are failures. `refs` and `sources` are in order of first use."""

    name: str
    path: Path
    body: str
    description: str
    facts: Mapping[str, str]
    columns: Mapping[str, str]
    refs: tuple[str, ...]
    sources: tuple[str, ...]
    first_line: int = 1
    """Line of the file on which `body` begins."""

    @property
    def is_warning(self) -> bool:
        """Of a test: its failure is worth a look and holds nothing up."""
        return self.facts.get("severity", "error") != "error"

    def sql(self, name_of: Callable[[str, str], str] | None = None) -> str:
        """The SQL with each reference replaced by `name_of(kind, name)`, kind being 'ref' or 'source'.

        Without `name_of` a reference becomes the quoted name, as in the published catalog.
        """

        def replace(match: re.Match[str]) -> str:
            kind, name = _reference(match["call"])  # type: ignore[misc]  # parsed when the file was read
            return name_of(kind, name) if name_of else f'"{name}"'

        return _JINJA.sub(replace, self.body)


@dataclass(frozen=True)
class Project:
    """All models, each after those it refers to, and all tests."""

    root: Path
    models: Mapping[str, Model] = field(default_factory=dict)
    tests: Mapping[str, Model] = field(default_factory=dict)

    @property
    def views(self) -> list[Model]:
        """The models that are views for people: all but the rule."""
        return [model for name, model in self.models.items() if name != RULE]


def folder() -> Path:
    """Where `dbt_like_sql/` lies: inside the installed package, or beside it in a checkout."""
    package = Path(srt_assets.__file__).parent
    for place in (package / "dbt_like_sql", package.parent / "dbt_like_sql"):
        if (place / "models").is_dir():
            return place
    raise UserError(
        f"the SQL models are missing: no dbt_like_sql/models beside or inside {package}",
        "reinstall srt-assets, or run from a complete checkout",
    )


def load(root: Path | None = None) -> Project:
    """Read and check the folder. Raises UserError with file:line, the nearest name, or the cycle as a path."""
    return _load(root or folder())


@lru_cache(maxsize=8)
def _load(root: Path) -> Project:
    models = _read_all(sorted((root / "models").rglob("*.sql")))
    tests = _read_all(sorted((root / "tests").rglob("*.sql")))
    for model in (*models.values(), *tests.values()):
        _check_references(model, models)
    return Project(root, {name: models[name] for name in _in_order(models)}, tests)


def create_view(con: duckdb.DuckDBPyConnection, model: Model, name: str | None = None) -> None:
    """Make a model a view under its own name or another. UserError with file and line if its SQL does not fit."""
    view = f'CREATE VIEW "{name or model.name}" AS {model.sql()}'
    try:
        statements = len(con.extract_statements(view))
        if statements == 1:
            con.execute(view)
    except duckdb.Error as error:
        raise _explained(model, error) from error
    if statements != 1:
        raise UserError(f"{model.path}: {statements} statements in the file", "leave one SELECT, without a semicolon")


def _explained(model: Model, error: duckdb.Error) -> UserError:
    """What DuckDB says of a model's SQL, with the line of the file."""
    text = str(error)
    # The first line that DuckDB saw holds the body's first line too.
    line = _LINE.search(text)
    place = f"{model.path}:{model.first_line + int(line[1]) - 1}" if line else str(model.path)
    return UserError(f"{place}: {text[: line.start()].strip() if line else text}", "correct the SQL of this file")


def code_version(model: Model, project: Project) -> str:
    """Changes when the meaning of a model's SQL, or of a model it reads, may have changed.

    Comments, white space and letter case of keywords do not count.
    """
    above = {name: code_version(project.models[name], project) for name in model.refs}
    return fingerprint(sql=canonical(model.sql()), refs=above)[:16]


def canonical(sql: str) -> str:
    """The SQL as sqlglot prints it, without comments; the raw text if sqlglot cannot read it."""
    import sqlglot

    try:
        return sqlglot.parse_one(sql, read="duckdb").sql(dialect="duckdb", comments=False)
    except sqlglot.errors.SqlglotError:
        return sql


def _read_all(paths: Iterable[Path]) -> dict[str, Model]:
    found: dict[str, Model] = {}
    for path in paths:
        model = _read(path)
        if model.name in found:
            raise UserError(
                f"{path}: a model named {model.name} exists already in {found[model.name].path}",
                "rename one of the files",
            )
        found[model.name] = model
    return found


def _read(path: Path) -> Model:
    if not _NAME_OF_MODEL.fullmatch(path.stem):
        raise UserError(f"{path}: {path.stem!r} is no name for a view", "use small letters, digits and _ for the file")
    if (path.stem != RULE and path.stem in TABLES) or path.stem == META:
        raise UserError(f"{path}: there is a table named {path.stem} already", "give the file another name")
    text = _text(path)
    header, body = _split_header(text)
    refs: dict[str, None] = {}
    sources: dict[str, None] = {}
    for match in _JINJA.finditer(text):
        reference = _reference(match["call"]) if match["call"] is not None else None
        if reference is None:
            line = text.count("\n", 0, match.start()) + 1
            raise UserError(
                f"{path}:{line}: {match.group().splitlines()[0]} is not supported in a model",
                "use only {{ ref('model') }} and {{ source('lake', 'table') }}",
            )
        (refs if reference[0] == "ref" else sources)[reference[1]] = None
    if not body.strip():
        raise UserError(f"{path}: no SQL in the file", "write one SELECT, or remove the file")
    body = body.rstrip()
    if body.endswith(";"):
        raise UserError(f"{path}:{text.rstrip().count(chr(10)) + 1}: a model ends without a semicolon", "remove it")
    description, facts, columns = _describe(header)
    first_line = len(header) + 1
    return Model(path.stem, path, body, description, facts, columns, tuple(refs), tuple(sources), first_line)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8", "save the file as UTF-8") from None


def _split_header(text: str) -> tuple[list[str], str]:
    lines = text.splitlines()
    count = next((i for i, line in enumerate(lines) if not line.startswith("--")), len(lines))
    return [line[2:].strip() for line in lines[:count]], "\n".join(lines[count:])


def _describe(header: list[str]) -> tuple[str, dict[str, str], dict[str, str]]:
    words: list[str] = []
    facts: dict[str, str] = {}
    columns: dict[str, str] = {}
    for line in header:
        fact = _FACT.fullmatch(line)
        if fact is None:
            words.append(line)
        elif fact["key"] == "column" and fact["of"]:
            columns[fact["of"]] = fact["value"]
        else:
            facts[fact["key"]] = fact["value"]
    return " ".join(words).strip(), facts, columns


def _reference(call: str) -> tuple[str, str] | None:
    if match := _REF.fullmatch(call):
        return "ref", match[1] or match[2]
    if (match := _SOURCE.fullmatch(call)) and (match[1] or match[2]) == SOURCE:
        return "source", match[3] or match[4]
    return None


def _check_references(model: Model, models: Mapping[str, Model]) -> None:
    for kind, names, known in (("ref", model.refs, models), ("source", model.sources, TABLES)):
        for name in names:
            if name not in known:
                raise UserError(
                    f"{model.path}:{_line_of(model.path, kind, name)}: {kind} to {name}, which does not exist",
                    nearest(name, known),
                )


def _line_of(path: Path, kind: str, name: str) -> int:
    text = _text(path)
    hits = (m for m in _JINJA.finditer(text) if m["call"] is not None and _reference(m["call"]) == (kind, name))
    return text.count("\n", 0, next(hits).start()) + 1


def _in_order(models: Mapping[str, Model]) -> list[str]:
    try:
        return list(TopologicalSorter({name: sorted(m.refs) for name, m in sorted(models.items())}).static_order())
    except CycleError as error:
        # graphlib lists each node before the one that depends on it; people read "a refers to b".
        path = list(reversed(error.args[1]))
        raise UserError(
            f"{models[path[0]].path}: the models refer to each other in a circle: {' -> '.join(path)}",
            "remove one of these references",
        ) from error
