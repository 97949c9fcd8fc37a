"""Files and hub sets to rows as they stand: any JSON value and its place. What a row means is decided in meaning.py.

Each kind of file has a reader of its own; here is decided who reads what, and what is said of a file that is not what
its name says. A row that could not be read is given as Unreadable.
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
from srt_assets.core.records import arrow_rows, csv_rows, hub, json_array, json_lines
from srt_assets.core.records.find import kind_of
from srt_assets.core.records.packed import spooled, unpacked
from srt_assets.settings import Dataset

# How a file is opened: `inputs.Reading` hashes what is read of it.
Opener = Callable[[Path], BufferedReader]
# What files really are, by their first bytes, and what to do.
_FIRST_BYTES = (
    (b"\x1f\x8b", "is packed with gzip", "let its name end in .gz"),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd", "let its name end in .zst"),
    (b"PK\x03\x04", "is a zip archive or an Excel file", "unpack it, or save it as CSV"),
    (b"BZh91AY&SY", "is packed with bzip2", "unpack it, or pack it with gzip"),
    (b"\xfd7zXZ", "is packed with xz", "unpack it, or pack it with gzip"),
    (arrow_rows.START, "is a Parquet file", "let its name end in .parquet"),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the data", "fetch the file itself: git lfs pull"),
    (codecs.BOM_UTF32_LE, "is UTF-32", "save the file as UTF-8"),
    (codecs.BOM_UTF16_LE, "is UTF-16", "save the file as UTF-8"),
    (codecs.BOM_UTF16_BE, "is UTF-16", "save the file as UTF-8"),
)


def sources(
    dataset: Dataset, paths: Iterable[Path], opened: Opener = files.opened, commit: str = ""
) -> list[tuple[str, Iterator[tuple[int, Any]]]]:
    """The files of a dataset, or its hub set: the name of each, and (0-based index, row) of its rows.

    UserError, while they are read, as `read_rows` and `hub.read_hub`.
    """
    if dataset.path:
        return [(str(path), read_rows(path, opened, dataset.delimiter)) for path in paths]
    return [(f"hf://{dataset.hf}/{dataset.split}", enumerate(hub.read_hub(dataset, commit)))]


def read_rows(file: Path, opened: Opener = files.opened, delimiter: str = "") -> Iterator[tuple[int, Any]]:
    """(0-based index, JSON value or Unreadable) of every row. UserError names file and place where reading must end."""
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
        if full := disk_full(error):  # by unpacking
            raise full from None
        raise UserError(f"cannot read {file}: {error.strerror or error}", "make the file readable") from None


def _text(file: Path, opened: Opener) -> BufferedReader:
    """A file that must be text of UTF-8. UserError if its first bytes say that it is something else."""
    source = opened(file)
    try:
        first = source.peek(64)
        _check_start(file, first)
        if not json.detect_encoding(first[:4]).startswith("utf-8"):  # without a mark, by its zeros
            raise UserError(f"{file} is no UTF-8: there are zeros between its letters", "save the file as UTF-8")
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
        raise UserError(what, "save the file as UTF-8; iconv does it if you know its encoding") from None
    except json_array.NotAnArray as error:
        hint = "wrap the records in [ ]; of several lists, make each a file"
        raise UserError(f"{file} holds one {error}, not a list of records", hint) from None


def _columns(file: Path, kind: str, opened: Callable[[Path], Any]) -> Iterator[Any]:
    with opened(file) as source:
        _check_start(file, source.peek(64), arrow_rows.START if kind == ".parquet" else b"")
        yield from (arrow_rows.parquet_rows if kind == ".parquet" else arrow_rows.arrow_rows)(file, source)
