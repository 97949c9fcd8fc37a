"""The rows of files and hub datasets: any JSON value, and its index. What a row means is decided in `forms`.

Each kind of file has a module that reads it. Here the module is chosen, and a file that is not what its name says is
refused. A row that cannot be read becomes Unreadable.
"""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

from srt_assets.core import files
from srt_assets.core.errors import UserError, disk_full
from srt_assets.core.records.files import arrow_rows, csv_rows, hub, json_array, json_lines
from srt_assets.core.records.files.find import kind_of
from srt_assets.core.records.files.packed import spooled, unpacked
from srt_assets.settings import Dataset

# Opens a file. `inputs.Reading.opened` also hashes what is read.
Opener = Callable[[Path], BufferedReader]
# What a file is, by its first bytes, and what a person can do.
_FIRST_BYTES = (
    (b"\x1f\x8b", "is packed with gzip", "rename it to end in .gz"),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd", "rename it to end in .zst"),
    (b"PK\x03\x04", "is a zip archive or an Excel file", "unpack it, or save it as CSV"),
    (b"BZh91AY&SY", "is packed with bzip2", "unpack it, or pack it with gzip"),
    (b"\xfd7zXZ", "is packed with xz", "unpack it, or pack it with gzip"),
    (arrow_rows.START, "is a Parquet file", "rename it to end in .parquet"),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the data", "fetch the file itself: git lfs pull"),
    (codecs.BOM_UTF32_LE, "is UTF-32", "save the file as UTF-8"),
    (codecs.BOM_UTF16_LE, "is UTF-16", "save the file as UTF-8"),
    (codecs.BOM_UTF16_BE, "is UTF-16", "save the file as UTF-8"),
)


def sources(
    dataset: Dataset, paths: Iterable[Path], opened: Opener = files.opened, commit: str = ""
) -> list[tuple[str, Iterator[tuple[int, Any]]]]:
    """The name of each file of a dataset, or of its hub dataset, with its rows as (0-based index, row).

    Reading them raises UserError as `read_rows` and `hub.read_hub`.
    """
    if dataset.path:
        return [(str(path), read_rows(path, opened, dataset.delimiter)) for path in paths]
    return [(f"hf://{dataset.hf}/{dataset.split}", enumerate(hub.read_hub(dataset, commit)))]


def read_rows(file: Path, opened: Opener = files.opened, delimiter: str = "") -> Iterator[tuple[int, Any]]:
    """(0-based index, JSON value or Unreadable) of every row. UserError names file and place where reading stops."""
    kind, packed = kind_of(file)
    try:
        if kind in (".parquet", ".arrow"):
            start = arrow_rows.START if kind == ".parquet" else b""
            rows = _columns(file, kind, partial(spooled, opened=opened, start=start) if packed else opened)
        else:
            opener = partial(_text, opened=partial(unpacked, opened=opened) if packed else opened)
            if kind == ".json":
                rows = _json(file, opener)
            elif kind in (".jsonl", ".ndjson"):
                rows = json_lines.values(file, opener)
            else:
                rows = csv_rows.rows(file, opener, delimiter or ("\t" if kind == ".tsv" else ","))
        yield from enumerate(rows)
    except OSError as error:
        if full := disk_full(error):  # Parquet and Arrow are unpacked to the disk
            raise full from None
        raise UserError(f"cannot read {file}: {error.strerror or error}", "make the file readable") from None


def _text(file: Path, opened: Opener) -> BufferedReader:
    """A file that must be UTF-8 text. UserError if its first bytes show that it is something else."""
    source = opened(file)
    try:
        first = source.peek(64)
        _check_start(file, first)
        if not json.detect_encoding(first[:4]).startswith("utf-8"):  # UTF-16 or UTF-32 without a BOM
            raise UserError(f"{file} is not UTF-8: it has zero bytes between its characters", "save the file as UTF-8")
    except BaseException:
        source.close()
        raise
    return source


def _check_start(file: Path, first: bytes, but: bytes = b"") -> None:
    for start, what, remedy in _FIRST_BYTES:
        if first.startswith(start) and start != but:
            raise UserError(f"{file} {what}", remedy)


def _json(file: Path, opened: Opener) -> Iterator[Any]:
    try:
        yield from json_array.values(file, opened)
    except json.JSONDecodeError as error:
        hint = "correct that line"
        if error.msg == "Extra data":
            hint = (
                "one object a line needs the ending .jsonl; objects of several lines need commas between and [ ] around"
            )
        raise UserError(f"{file}, line {error.lineno}, column {error.colno}: broken JSON: {error.msg}", hint) from None
    except json_array.NotUtf8 as error:
        what = f"{file}, line {error.line}: byte {error.start + 1} of the file is not UTF-8"
        raise UserError(what, "save the file as UTF-8, for example with iconv") from None
    except json_array.NotAnArray as error:
        hint = "wrap the records in [ ]; if there are several lists, write each to its own file"
        raise UserError(f"{file} holds one {error}, not a list of records", hint) from None


def _columns(file: Path, kind: str, opened: Callable[[Path], Any]) -> Iterator[Any]:
    with opened(file) as source:
        _check_start(file, source.peek(64), arrow_rows.START if kind == ".parquet" else b"")
        yield from (arrow_rows.parquet_rows if kind == ".parquet" else arrow_rows.arrow_rows)(file, source)
