"""Files to rows as they stand: any JSON value and its place in the file. What a row means is decided in formats.py."""

import json
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

from srt_assets.core.errors import UserError
from srt_assets.core.masking import redact
from srt_assets.paths import shown
from srt_assets.settings import Dataset

SUFFIXES = (".json", ".jsonl", ".parquet")


def dataset_files(dataset: Dataset) -> list[Path]:
    """The files a dataset's `path` (a file or a glob) names, sorted. UserError if there is none, or no data file."""
    folder, pattern = _pattern(Path(dataset.path).absolute())
    path = folder / pattern
    # Not Path.glob, which finds hidden files too.
    found = [pattern] if path.is_file() else glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207
    files = sorted(file for name in found if (file := folder / name).is_file())
    if not files and path.is_dir():
        raise UserError(f"dataset {dataset.name!r}: {path} is a folder", f"name its files: {dataset.path}/*.jsonl")
    if not files:
        raise UserError(
            f"dataset {dataset.name!r}: no file at {path}",
            "correct datasets.path in srt.toml; relative paths count from the folder of srt.toml",
        )
    for file in files:
        if file.suffix not in SUFFIXES:
            raise UserError(
                f"dataset {dataset.name!r}: {file} is none of {', '.join(SUFFIXES)}", "convert it or narrow the glob"
            )
        if shown(file) != str(file):  # no table takes it
            raise UserError(f"dataset {dataset.name!r}: the name {shown(file)} is not UTF-8", "rename the file")
    return files


def _pattern(path: Path) -> tuple[Path, str]:
    """A path cut where its pattern begins: folders that are there under their very names, `[exp]` too, are none."""
    folder, *names = path.parts
    there = Path(folder)
    for place, name in enumerate(names[:-1]):
        if not (there / name).is_dir():
            return there, str(Path(*names[place:]))
        there /= name
    return there, names[-1] if names else ""


def read_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """(0-based index, JSON value) of every row. UserError names file and line of the first thing that is no JSON."""
    try:
        if file.suffix == ".parquet":
            yield from _parquet(file)
        elif file.suffix == ".jsonl":
            yield from _jsonl(file)
        else:
            yield from _json(file)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start} is not UTF-8", "save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}", "make the file readable") from None


def _json(file: Path) -> Iterator[tuple[int, Any]]:
    text = file.read_text(encoding="utf-8-sig")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "one object a line needs the ending .jsonl" if error.msg == "Extra data" else "correct that line"
        raise UserError(f"{file}, line {error.lineno}, column {error.colno}: broken JSON: {error.msg}", hint) from None
    if not isinstance(rows, list):
        raise UserError(f"{file} holds one {type(rows).__name__}, not a list of records", "wrap the records in [ ]")
    yield from enumerate(rows)


def _jsonl(file: Path) -> Iterator[tuple[int, Any]]:
    index = 0
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
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


def _parquet(file: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is no Parquet file: {error}", "write it again or correct its ending") from None
    index = 0
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
