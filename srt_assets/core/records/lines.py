"""The lines of a text file of UTF-8, one by one. What a line means is decided by json_lines.py and csv_rows.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from srt_assets.core.errors import UserError

LONGEST_LINE = 1 << 28
_CHUNK = 1 << 16


def lines(source: BinaryIO, file: Path, any_end: bool = False) -> Iterator[tuple[int, str]]:
    """(1-based number, text with its end) of every line; `any_end`: a line may end in a carriage return alone too.

    UserError names the line that is longer than LONGEST_LINE bytes, or that is not UTF-8: in another encoding every
    line with an accent would be lost, which is no chance sample, so such a file is not read at all.
    """
    for number, raw in enumerate(_split(source) if any_end else _read(source), start=1):
        if len(raw) > LONGEST_LINE:
            what = f"{file}, line {number} is longer than {LONGEST_LINE >> 20} MB, which no record is"
            raise UserError(what, "write one record a line")
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            what = f"{file}, line {number}: byte {error.start + 1} of the line is not UTF-8"
            raise UserError(what, "save the file as UTF-8; iconv does it if you know its encoding") from None


def _read(source: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: source.readline(LONGEST_LINE + 1), b"")


def _split(source: BinaryIO) -> Iterator[bytes]:
    rest = b""
    # What is kept is looked through again each time: twice as much is read then.
    while data := source.read(min(max(_CHUNK, len(rest)), LONGEST_LINE + 1 - len(rest))):
        found = (rest + data).splitlines(keepends=True)
        # Of the last one the end may be missing: of \r\n its second half.
        rest = b"" if found[-1].endswith(b"\n") else found.pop()
        yield from found
        if len(rest) > LONGEST_LINE:
            break
    if rest:
        yield rest
