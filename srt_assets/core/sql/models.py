"""Finds, reads, checks, sorts and renders the models and tests of `dbt_like_sql/`.

A strict subset of dbt, so that real dbt can run the same folder: one SELECT per file, named after the file; the only
Jinja is `{{ ref('model') }}` and `{{ source('lake', 'table') }}`. Leading `--` lines describe the model;
`-- @key: value` lines carry facts (`@column NAME: text` describes a column). Anything else is an error with file:line.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import MappingProxyType

import duckdb

import srt_assets
from srt_assets.core import files
from srt_assets.core.errors import UserError, nearest
from srt_assets.core.hashing import digest
from srt_assets.core.tables import TABLES

SOURCE = "lake"
# The one model that is not a view: a stage runs it and writes its rows to the table of the same name.
RULE = "decisions"
# The ratios that the rule compares, and the scores that they are computed from.
RATIOS, SCORES = "candidate_scores", "final_scores"
# The table with facts about the published catalog itself.
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
    """One file: a model, or a test, whose rows are failures. `refs` and `sources` are in order of first use."""

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
    error: UserError | None = None
    """The first error found in the file without DuckDB."""

    @property
    def is_warning(self) -> bool:
        """Whether a failure of this test is only a warning and blocks no asset."""
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
    """All models, each after the models it refers to, and all tests. `unusable`: errors of files that are neither."""

    root: Path
    models: Mapping[str, Model] = field(default_factory=dict)
    tests: Mapping[str, Model] = field(default_factory=dict)
    unusable: tuple[UserError, ...] = ()

    @property
    def views(self) -> list[Model]:
        """The models that are views: all but the rule."""
        return [model for name, model in self.models.items() if name != RULE]

    @cached_property
    def broken(self) -> Mapping[str, UserError]:
        """The errors of models and tests that do not compile over empty tables, by name."""
        return _compiled(self)

    @property
    def good_views(self) -> list[Model]:
        """The views that compile."""
        return [model for model in self.views if model.name not in self.broken]


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
    """Read the folder. An error in a file is stored in its model's `error` and does not affect the other files."""
    return _load(root or folder())


@lru_cache(maxsize=8)
def _load(root: Path) -> Project:
    models, bad_models = _read_all(root / "models")
    tests, bad_tests = _read_all(root / "tests")
    for found in (models, tests):
        for name, model in found.items():
            found[name] = _with_known_references(model, models)
    return Project(root, {name: models[name] for name in _in_order(models)}, tests, (*bad_models, *bad_tests))


def _compiled(project: Project) -> dict[str, UserError]:
    found: dict[str, UserError] = {}
    with duckdb.connect() as con:
        for name, table in TABLES.items():
            con.execute(f'CREATE VIEW "{name}" AS {table.select_sql([])}')
        for model in (*project.models.values(), *project.tests.values()):
            if waits_for := next((ref for ref in model.refs if ref in found), None):
                found[model.name] = UserError(
                    f"{model.path}: it reads {waits_for}, which does not compile", "correct that file first"
                )
                continue
            is_view = model.name in project.models and model.name != RULE
            view = model.name if is_view else f"{model.name}, compiled"
            try:
                create_view(con, model, view)
                if model.name in project.tests:
                    _check_names_student(con, model, view)
            except UserError as error:
                found[model.name] = error
    return found


def _check_names_student(con: duckdb.DuckDBPyConnection, test: Model, view: str) -> None:
    """UserError if a test of a per-student asset has no column student: then all students would fail with one."""
    from srt_assets.core import stages  # imported here, because the stages import this module

    columns = {d[0] for d in con.execute(f'FROM "{view}" LIMIT 0').description or []}
    if test.facts.get("asset") in {stage.asset for stage in stages.of_student()} and "student" not in columns:
        raise UserError(
            f"{test.path}: {test.facts['asset']} is made for each student, but the rows of this test have no column "
            "student",
            "select the column student too",
        )


def check_rule() -> None:
    """UserError with file and line if the rule, or a model it reads, does not compile."""
    check(RULE)


def check(name: str) -> None:
    """UserError with file and line if this model, which a stage runs, is missing or does not compile."""
    project = load()
    if name not in project.models:
        raise UserError(f"{project.root}/models has no {name}.sql, which decides what is kept", "put it back")
    if error := project.broken.get(name):
        raise error


def written_out(name: str, relation: Callable[[str], str | None]) -> str:
    """The SQL of a model, with the models it reads inlined as subqueries.

    `relation(name)` returns a relation to read instead of a model or table; None: the model's SQL, or the table itself.
    """
    project = load()

    def name_of(kind: str, name: str) -> str:
        if (found := relation(name)) is not None:
            return found
        return f"({project.models[name].sql(name_of)}\n)" if kind == "ref" else f'"{name}"'

    return project.models[name].sql(name_of)


def create_view(con: duckdb.DuckDBPyConnection, model: Model, name: str | None = None) -> None:
    """Create a view of a model under its own name or `name`. UserError with file and line if it does not compile."""
    if model.error:
        raise model.error
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
    """DuckDB's error about a model's SQL, with file and line."""
    text = str(error)
    # The CREATE VIEW and the body's first line are on the same line.
    line = _LINE.search(text)
    place = f"{model.path}:{model.first_line + int(line[1]) - 1}" if line else str(model.path)
    return UserError(f"{place}: {text[: line.start()].strip() if line else text}", "correct the SQL of this file")


def code_version(model: Model, project: Project, as_tables: Mapping[str, str] = MappingProxyType({})) -> str:
    """A hash that changes when the SQL of a model, or of a model it reads, may have changed its meaning.

    It ignores comments, white space and letter case of keywords. `as_tables`: models that count as the table whose rows
    they return unchanged.
    """

    def name_of(kind: str, name: str) -> str:
        return f'"{as_tables.get(name, name) if kind == "ref" else name}"'

    above = {n: code_version(project.models[n], project, as_tables) for n in model.refs if n not in as_tables}
    return digest(sql=canonical(model.sql(name_of)), refs=above)[:16]


# Cached, because `srt status` calls it for each student and each call took a quarter of a second.
@lru_cache(maxsize=256)
def canonical(sql: str) -> str:
    """The SQL as sqlglot prints it, without comments; the raw text if sqlglot cannot read it."""
    import sqlglot

    try:
        return sqlglot.parse_one(sql, read="duckdb").sql(dialect="duckdb", comments=False)
    except sqlglot.errors.SqlglotError:
        return sql


def _read_all(folder: Path) -> tuple[dict[str, Model], list[UserError]]:
    """The files of a folder by name, and the errors of those whose names cannot be used."""
    found: dict[str, Model] = {}
    unusable = []
    for path in sorted(folder.rglob("*.sql")):
        try:
            _check_name(path, found)
        except UserError as error:
            unusable.append(error)
        else:
            found[path.stem] = _read(path)
    return found, unusable


def _check_name(path: Path, found: Mapping[str, Model]) -> None:
    if not _NAME_OF_MODEL.fullmatch(path.stem):
        raise UserError(f"{path}: {path.stem!r} is no name for a view", "use small letters, digits and _ for the file")
    if (path.stem != RULE and path.stem in TABLES) or path.stem == META:
        raise UserError(f"{path}: there is a table named {path.stem} already", "give the file another name")
    if path.stem in found:
        other = found[path.stem].path
        raise UserError(f"{path}: a model named {path.stem} exists already in {other}", "rename one of the files")


def _read(path: Path) -> Model:
    try:
        text = _text(path)
    except UserError as unreadable:
        return Model(path.stem, path, "", "", {}, {}, (), (), error=unreadable)
    header, body = _split_header(text)
    description, facts, columns = _describe(header)
    body = body.rstrip()
    refs, sources, error = _references(path, text)
    if not body:
        error = UserError(f"{path}: no SQL in the file", "write one SELECT, or remove the file")
    elif body.endswith(";"):
        line = text.rstrip().count("\n") + 1
        error = UserError(f"{path}:{line}: a model ends without a semicolon", "remove it")
    return Model(path.stem, path, body, description, facts, columns, refs, sources, len(header) + 1, error)


def _references(path: Path, text: str) -> tuple[tuple[str, ...], tuple[str, ...], UserError | None]:
    """Names of models and tables in order of first use, and an error for the first unsupported Jinja."""
    refs: dict[str, None] = {}
    sources: dict[str, None] = {}
    error = None
    for match in _JINJA.finditer(text):
        reference = _reference(match["call"]) if match["call"] is not None else None
        if reference is None:
            line = text.count("\n", 0, match.start()) + 1
            error = error or UserError(
                f"{path}:{line}: {match.group().splitlines()[0]} is not supported in a model",
                "use only {{ ref('model') }} and {{ source('lake', 'table') }}",
            )
            continue
        (refs if reference[0] == "ref" else sources)[reference[1]] = None
    return tuple(refs), tuple(sources), error


def _text(path: Path) -> str:
    try:
        return files.read_text(path, files.WRITTEN, "utf-8-sig")
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


def _with_known_references(model: Model, models: Mapping[str, Model]) -> Model:
    """The model without references to unknown models and tables; the first of them becomes its error."""
    error = model.error
    for kind, names, known in (("ref", model.refs, models), ("source", model.sources, TABLES)):
        for name in names:
            if name not in known and not error:
                line = _line_of(model.path, kind, name)
                error = UserError(f"{model.path}:{line}: {kind} to {name}, which does not exist", nearest(name, known))
    refs = tuple(name for name in model.refs if name in models)
    return replace(model, refs=refs, sources=tuple(s for s in model.sources if s in TABLES), error=error)


def _line_of(path: Path, kind: str, name: str) -> int:
    text = _text(path)
    hits = (m for m in _JINJA.finditer(text) if m["call"] is not None and _reference(m["call"]) == (kind, name))
    return text.count("\n", 0, next(hits).start()) + 1


def _in_order(models: dict[str, Model]) -> list[str]:
    """Names of the models, each after those it refers to. Models with circular references get an error."""
    while True:
        try:
            return list(TopologicalSorter({name: sorted(m.refs) for name, m in sorted(models.items())}).static_order())
        except CycleError as error:
            # graphlib lists each node before the one that depends on it; people read "a refers to b".
            circle = list(reversed(error.args[1]))
            for name in circle:
                wrong = UserError(
                    f"{models[name].path}: the models refer to each other in a circle: {' -> '.join(circle)}",
                    "remove one of these references",
                )
                others = tuple(ref for ref in models[name].refs if ref not in circle)
                models[name] = replace(models[name], refs=others, error=wrong)
