"""`srt preview`: prints what a file or hub dataset would become in a run, for a terminal or as JSON.

The rows are read in `core/records/preview.py`.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from srt_assets.commands import terminal
from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.records.forms.result import REASONS
from srt_assets.core.records.preview import Preview, preview
from srt_assets.core.students import checkpoints
from srt_assets.settings import Dataset, Settings, find_settings_file

# Characters shown of a text and of a rejected row; --format json has the full text.
_TEXT, _RAW = 300, 160
_MOST_FIELDS = 40
_BESIDE = {"not read", "not used"}
# Reject reasons that naming the columns may solve.
_UNREAD = frozenset({"unknown_form", "no_structure", "missing_instruction", "missing_response"})
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def dataset_of(settings: Settings, source: str, options: dict[str, Any]) -> Dataset:
    """The dataset of the settings with this name; else one for a file, a glob or a hub id. The options change it."""
    options = {name: value for name, value in options.items() if value}
    known = next((dataset for dataset in settings.datasets if dataset.name == source), None)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(source).name.partition(".")[0]).strip("-.") or "data"
    is_hub = not Path(source).exists() and not Path(source).suffix and _HUB_ID.fullmatch(source)
    new = {"name": name, "hf" if is_hub else "path": source if is_hub else _for_settings(source)}
    try:
        return Dataset(**(known.model_dump() if known else new) | options)
    except ValidationError as error:
        told = "; ".join(str(one["msg"]) for one in error.errors())
        raise UserError(f"srt preview {source}: {told}", "correct the option") from None


def _for_settings(path: str) -> str:
    """A path from here as srt.toml may name it: in full, if that lies in another folder."""
    file = find_settings_file()
    return path if file is None or file.parent == Path.cwd() else str(Path(path).parent.resolve() / Path(path).name)


def columns_of(pairs: list[str] | None) -> dict[str, str]:
    """`column=field` options as the setting `columns`. UserError if one is not COLUMN=FIELD."""
    found = {}
    for pair in pairs or []:
        column, equals, field = pair.partition("=")
        if not equals:
            raise UserError(f"--column {pair!r} is not COLUMN=FIELD", "write for example --column instruction=problem")
        found[column.strip()] = field.strip()
    return found


def run(
    settings: Settings, lake: Lake, dataset: Dataset, rows: int, format: str, console: Console | None = None
) -> None:
    """Print the preview. The exit code is 0 even if no row becomes a record."""
    found = preview(lake, dataset, rows)
    lengths = _lengths(settings, lake, found)
    if format == "json":
        terminal.print_json(json.dumps(_plain(found) | {"token_lengths": lengths}, indent=1, ensure_ascii=False))
        return
    out = console or terminal.console(highlight=False)
    _head(out, found)
    for number, (place, form, pair) in enumerate(found.records, start=1):
        out.print(
            terminal.text(f"record {number}: {place.file}, row {place.index}, read as {form}", "bold"), soft_wrap=True
        )
        for name, value in pair._asdict().items():
            if value:
                out.print(terminal.text(f"  {name}: {_cut(value, _TEXT)}"), soft_wrap=True)
    if found.records:
        out.print()
    if found.fields:
        out.print(_fields(found))
    if found.reasons:
        out.print(_rejects(found))
    if lengths:
        out.print(_token_lengths(lengths, len(found.to_measure)))
    _block(out, found)


def _head(out: Console, found: Preview) -> None:
    dataset = found.dataset
    share = f" ({found.n_records / found.rows:.0%} of the rows)" if found.rows else ""
    rows = _n(found.rows, "row") if found.whole else f"the first {_n(found.rows, 'row')}"
    out.print(
        terminal.text(f"{dataset.path or dataset.hf}: {rows}, {_n(found.n_records, 'record')}{share}", "bold"),
        soft_wrap=True,
    )
    if not found.whole:
        out.print(terminal.text("--rows 0 reads all rows", "dim"))
    forms = ", ".join(f"{form} ({n:,})" for form, n in found.forms.most_common())
    out.print(terminal.text(f"form: {forms or 'no known form'}", "" if forms else "red"))
    if found.is_refused:
        what = f"a run would fail: {found.n_unreadable:,} unreadable rows are more than max_bad_share allows"
        out.print(terminal.text(what, "red"))
    if found.n_alternatives:
        out.print(terminal.text(f"answers judged worse, for raw_alternatives: {found.n_alternatives:,}"))
    out.print()


def _fields(found: Preview) -> Table:
    table = _table(
        "fields, and the number of rows where they are filled", "field", "rows", "type", "what becomes of it"
    )
    # Fields that are read come first, because a file may have thousands of columns.
    ordered = sorted(found.fields.items(), key=lambda item: (item[1].becomes.keys() <= _BESIDE, -item[1].rows))
    for name, one in ordered[:_MOST_FIELDS]:
        kinds = one.becomes.most_common()
        told = ", ".join(kind if len(kinds) == 1 else f"{kind} ({n:,})" for kind, n in kinds)
        style = "yellow" if "not read" in one.becomes else "" if "read" in one.becomes else "dim"
        table.add_row(*(terminal.text(text, style) for text in (name, f"{one.rows:,}", one.type, told)))
    if len(ordered) > _MOST_FIELDS:
        table.caption = f"and {len(ordered) - _MOST_FIELDS:,} more fields; --format json lists them\n"
        table.caption_justify = "left"
    return table


def _rejects(found: Preview) -> Table:
    table = _table("rejected rows and answers (row numbers start at 0)", "reason", "number", "meaning, and an example")
    for reason, n in found.reasons.most_common():
        example = found.examples[reason]
        where = f"{Path(example.place.file).name}, row {example.place.index}"
        detail = f" ({_cut(example.detail, _RAW)})" if example.detail else ""
        told = f"{REASONS.get(reason, reason)}\n{where}{detail}: {_cut(example.row, _RAW)}"
        table.add_row(terminal.text(reason, "yellow"), terminal.text(f"{n:,}"), terminal.text(told))
    return table


def _token_lengths(lengths: list[dict[str, Any]], measured: int) -> Table:
    table = _table(
        f"tokens of prompt and answer ({_n(measured, 'record')} measured)",
        *("student", "median", "95 of 100", "longest", "scored whole", "trained on"),
    )
    for one in lengths:
        if "error" in one:
            table.add_row(terminal.text(one["student"]), terminal.text(one["error"], "red"))
            continue
        numbers = [f"{one[name]:,}" for name in ("median", "p95", "longest")]
        shares = [f"{one[name]:.0%}" for name in ("scored_whole", "trained")]
        table.add_row(*map(terminal.text, (one["student"], *numbers, *shares)))
    return table


def _block(out: Console, found: Preview) -> None:
    out.print(terminal.text("for srt.toml:", "bold"))
    out.print(terminal.text(toml_of(found.dataset)), soft_wrap=True)
    if _UNREAD & found.reasons.keys() and not found.n_records:
        what = "no row becomes a record: name the fields, for example --column instruction=… --column response=…"
        out.print(terminal.text(what, "red"))


def toml_of(dataset: Dataset) -> str:
    """The `[[datasets]]` block of these settings, without default values."""
    facts = dataset.model_dump(mode="json", exclude_defaults=True)
    lines = ["[[datasets]]"]
    for name, value in facts.items():
        lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        # A JSON string is a valid TOML string, except that TOML requires DEL to be escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _lengths(settings: Settings, lake: Lake, found: Preview) -> list[dict[str, Any]]:
    """Lengths for each registered student; for a student that cannot be used, an error instead of numbers."""
    if not found.to_measure or not (slugs := checkpoints.list_students(lake)):
        return []
    from srt_assets.core.scoring.encoding import Texts
    from srt_assets.core.training.lengths import lengths

    texts = [Texts(*pair) for pair in found.to_measure]
    measured: list[dict[str, Any]] = []
    for slug in slugs:
        try:
            one = lengths(settings, lake, slug, texts)
        except UserError as error:
            measured.append({"student": slug, "error": error.message})
        else:
            measured.append(asdict(one) if one else {"student": slug, "error": "it can encode none of these records"})
    return measured


def _plain(found: Preview) -> dict[str, Any]:
    return {
        "dataset": found.dataset.model_dump(mode="json", exclude_defaults=True),
        "rows": found.rows,
        "whole": found.whole,
        "n_records": found.n_records,
        "n_unreadable": found.n_unreadable,
        "n_alternatives": found.n_alternatives,
        "forms": dict(found.forms),
        "records": [{**asdict(place), "form": form, **pair._asdict()} for place, form, pair in found.records],
        "fields": {
            name: {"rows": one.rows, "type": one.type, "becomes": dict(one.becomes)}
            for name, one in found.fields.items()
        },
        "rejects": {
            reason: {"number": n, "means": REASONS.get(reason, reason), **asdict(found.examples[reason])}
            for reason, n in found.reasons.items()
        },
    }


def _table(title: str, *names: str) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for name in names:
        right = name in ("rows", "number", "median", "95 of 100", "longest", "scored whole", "trained on")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    return table


def _n(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _cut(text: str, most: int) -> str:
    text = text.replace("\n", " ⏎ ")
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"
