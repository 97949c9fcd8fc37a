"""`srt export`: the selected set as files for other trainers, or as a folder for Hugging Face `datasets` with a card.

Rows are streamed from DuckDB in the order of the set, so the same set gives the same bytes. A target is written under
another name and renamed when complete; an existing target is never changed.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from srt_assets.commands import card
from srt_assets.core import rights
from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.selection.students import known_student
from srt_assets.settings import Settings

_CHUNK = 10_000
_FILES = (".json", ".jsonl")


def _prompt(row: dict[str, Any]) -> str:
    return f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]


def _alpaca(row: dict[str, Any]) -> dict[str, Any]:
    return {"instruction": row["instruction"], "input": row["input"], "output": row["response"]}


def _sharegpt(row: dict[str, Any]) -> dict[str, Any]:
    turns = [{"from": "human", "value": _prompt(row)}, {"from": "gpt", "value": row["response"]}]
    return {"id": row["sample_id"], "conversations": turns}


def _messages(row: dict[str, Any]) -> dict[str, Any]:
    turns = [{"role": "user", "content": _prompt(row)}, {"role": "assistant", "content": row["response"]}]
    return {"messages": turns}


FORMATS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "messages": _messages,
}


def export(settings: Settings, lake: Lake, student: str, format: str, out: Path) -> int:
    """Write the student's selected set and return the number of rows.

    An `out` that ends in .json (one array) or .jsonl (one line per row) is a file; without an ending it is a folder
    with `data/train.jsonl` and a dataset card. UserError: unknown format or student, existing target, nothing selected.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}", f"use one of {', '.join(FORMATS)}")
    known_student(lake, student, "selected_set")
    if out.suffix and out.suffix not in _FILES:
        raise UserError(f"{out} ends in {out.suffix}", "end it in .json or .jsonl, or in neither for a datasets folder")
    if out.exists():
        raise UserError(f"{out} exists already", "name another file, or remove it first")
    manifest = lake.manifest("selected_set", f"student={student}")
    if manifest is None or not manifest.rows:
        raise UserError(
            f"the selected set of {student} is empty",
            f"see why: srt sql \"SELECT * FROM selection_summary WHERE student = '{student}' AND active\"",
        )
    with rights.of_the_user():
        out.parent.mkdir(parents=True, exist_ok=True)
    # In the target's folder, so that the move is a rename.
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        if out.suffix:
            rows = _write(aside, _rows(lake, student, FORMATS[format]), as_lines=out.suffix == ".jsonl")
        else:
            (aside / "data").mkdir(parents=True)
            rows = _write(aside / "data" / "train.jsonl", _rows(lake, student, FORMATS[format]), as_lines=True)
            text = card.write(settings, lake, student, format)
            (aside / "README.md").write_text(text, encoding="utf-8")
        rights.give(aside)
        aside.rename(out)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)
    return rows


def _rows(lake: Lake, student: str, convert: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    columns = ("sample_id", "instruction", "input", "response")
    with lake.connect() as con:
        cursor = con.execute(
            f"SELECT {', '.join(columns)} FROM {lake.source('selected_set', f'student={student}')} ORDER BY position"
        )
        while chunk := cursor.fetchmany(_CHUNK):
            for row in chunk:
                yield convert(dict(zip(columns, row, strict=True)))


def _write(path: Path, rows: Iterator[dict[str, Any]], as_lines: bool) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            before = "" if as_lines else ("[\n" if count == 0 else ",\n")
            file.write(before + json.dumps(row, ensure_ascii=False) + ("\n" if as_lines else ""))
            count += 1
        if not as_lines:
            file.write("\n]\n")
    return count
