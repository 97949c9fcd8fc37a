"""Files to rows as they stand: any JSON value and its place in the file. What a row means is decided in meaning.py."""

import json
import os
from collections.abc import Callable, Iterator
from glob import glob
from io import BufferedReader
from itertools import dropwhile
from os.path import lexists
from pathlib import Path
from typing import Any

from srt_assets.core import files
from srt_assets.core.errors import UserError
from srt_assets.core.masking import redact
from srt_assets.core.records import json_array
from srt_assets.paths import brief, shown
from srt_assets.settings import Dataset

SUFFIXES = (".json", ".jsonl", ".parquet")
LONGEST_LINE = 1 << 28
# How a file is opened: `inputs.Reading` hashes what is read of it.
Opener = Callable[[Path], BufferedReader]


def dataset_files(dataset: Dataset) -> list[Path]:
    """The files a dataset's `path` (a file or a glob) names, sorted. UserError if there is none, or no data file."""
    path = Path(dataset.path).absolute()
    if files.is_folder(path):
        raise UserError(f"dataset {dataset.name!r}: {path} is a folder", f"name its files: {dataset.path}/*.jsonl")
    found = [path] if lexists(path) else sorted(set(_matching(*_pattern(path))))
    # A folder's name may match a pattern that is about files; anything else that is no file is said.
    found = [file for file in found if not files.is_folder(file)]
    if not found:
        raise UserError(
            f"dataset {dataset.name!r}: no file at {brief(path)}",
            "correct datasets.path in srt.toml; relative paths count from the folder of srt.toml",
        )
    for file in found:
        if why := files.what_else(file):
            raise UserError(
                f"dataset {dataset.name!r}: {brief(file)} {why}",
                "name an ordinary file: it is read several times, and must be the same each time",
            )
        if file.suffix not in SUFFIXES:
            raise UserError(
                f"dataset {dataset.name!r}: {file} is none of {', '.join(SUFFIXES)}", "convert it or narrow the glob"
            )
        if shown(file) != str(file):  # no table takes it
            raise UserError(f"dataset {dataset.name!r}: the name {shown(file)} is not UTF-8", "rename the file")
    return found


def _pattern(path: Path) -> tuple[Path, list[str]]:
    """A path cut where its pattern begins: folders that are there under their very names, `[exp]` too, are none."""
    folder, *names = path.parts
    there = Path(folder)
    for place, name in enumerate(names[:-1]):
        if not files.is_folder(there / name):
            return there, names[place:]
        there /= name
    return there, names[-1:]


def _matching(folder: Path, names: list[str]) -> Iterator[Path]:
    """What a pattern, given by its parts, matches below a folder; nothing hidden, as in a shell."""
    if "**" in names:
        place = names.index("**")
        rest = list(dropwhile(lambda name: name == "**", names[place:]))
        tops = _matching(folder, names[:place]) if place else [folder]
        seen: set[tuple[int, int]] = set()
        for below in (b for top in tops for b in _folders(top, seen)):
            yield from _matching(below, rest or ["*"])
    else:
        # Not Path.glob, which finds hidden files too.
        yield from (folder / name for name in glob(str(Path(*names)), root_dir=folder))  # noqa: PTH207


def _folders(top: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """A folder and all below it, each once: links between folders may go round in circles."""
    try:
        found = top.stat()
        if (found.st_dev, found.st_ino) in seen:
            return
        seen.add((found.st_dev, found.st_ino))
        below = [entry for entry in os.scandir(top) if files.is_folder(Path(entry.path)) and entry.name[0] != "."]
    except OSError:  # none, or not ours to look into
        return
    yield top
    for entry in sorted(below, key=lambda entry: (entry.is_symlink(), entry.name)):
        yield from _folders(top / entry.name, seen)


def read_rows(file: Path, opened: Opener = files.opened) -> Iterator[tuple[int, Any]]:
    """(0-based index, JSON value) of every row. UserError names file and line of the first thing that is no JSON."""
    try:
        if file.suffix == ".parquet":
            yield from _parquet(file, opened)
        elif file.suffix == ".jsonl":
            yield from _jsonl(file, opened)
        else:
            yield from _json(file, opened)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start} is not UTF-8", "save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}", "make the file readable") from None


def _json(file: Path, opened: Opener) -> Iterator[tuple[int, Any]]:
    try:
        yield from enumerate(json_array.values(file, opened))
    except json.JSONDecodeError as error:
        hint = "one object a line needs the ending .jsonl" if error.msg == "Extra data" else "correct that line"
        raise UserError(f"{file}, line {error.lineno}, column {error.colno}: broken JSON: {error.msg}", hint) from None
    except json_array.NotAnArray as error:
        raise UserError(f"{file} holds one {error}, not a list of records", "wrap the records in [ ]") from None


def _jsonl(file: Path, opened: Opener) -> Iterator[tuple[int, Any]]:
    index = 0
    with opened(file) as lines:
        for number, raw in enumerate(iter(lambda: lines.readline(LONGEST_LINE + 1), b""), start=1):
            if len(raw) > LONGEST_LINE:
                what = f"{file}, line {number} is longer than {LONGEST_LINE >> 20} MB, which no record is"
                raise UserError(what, "write one JSON object a line")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                what = f"{file}, line {number}: byte {error.start + 1} of the line is not UTF-8"
                raise UserError(what, "save the file as UTF-8") from None
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                what = f"{file}, line {number}, column {error.colno}: broken JSON: {error.msg}"
                raise UserError(what, "correct or delete that line") from None
            yield index, row
            index += 1


def _parquet(file: Path, opened: Opener) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = 0
    with opened(file) as bytes_of:
        try:
            source = pq.ParquetFile(bytes_of)
        except pa.ArrowInvalid as error:
            raise UserError(f"{file} is no Parquet file: {error}", "write it again or correct its ending") from None
        for batch in source.iter_batches(batch_size=8192):
            for row in batch.to_pylist():
                yield index, row
                index += 1


def read_hub(dataset: Dataset) -> Iterator[tuple[int, Any]]:
    """Rows of a Hugging Face dataset split. UserError if it cannot be had."""
    import datasets

    try:
        rows = datasets.load_dataset(dataset.hf, split=dataset.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        what = f"dataset {dataset.name!r}: cannot load {dataset.hf!r}, split {dataset.split!r}: {redact(str(error))}"
        raise UserError(
            what, "check the name, the split and the network; or download it and set datasets.path"
        ) from None
    yield from enumerate(rows)
