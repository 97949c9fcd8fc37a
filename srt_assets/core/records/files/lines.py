"""The lines of a UTF-8 text file, one by one. json_lines.py and csv_rows.py decide what a line means."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from srt_assets.core.errors import UserError

LONGEST_LINE = 1 << 28
_CHUNK = 1 << 16


def lines(source: BinaryIO, file: Path, any_end: bool = False) -> Iterator[tuple[int, str]]:
    """(1-based number, text with its line end) of every line. `any_end`: a carriage return alone ends a line too.

    UserError names a line that is longer than LONGEST_LINE bytes, or not UTF-8. The whole file is refused then: in
    another encoding exactly the lines with accents would be lost, and the rest would be a biased sample.
    """
    for number, raw in enumerate(_split(source) if any_end else _read(source), start=1):
        if len(raw) > LONGEST_LINE:
            what = f"{file}, line {number} is longer than {LONGEST_LINE >> 20} MB"
            raise UserError(what, "write one record per line")
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            what = f"{file}, line {number}: byte {error.start + 1} of the line is not UTF-8"
            raise UserError(what, "save the file as UTF-8, for example with iconv") from None


def _read(source: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: source.readline(LONGEST_LINE + 1), b"")


def _split(source: BinaryIO) -> Iterator[bytes]:
    rest = b""
    # The text kept so far is searched again each time. Reading as much again keeps the total work linear.
    while data := source.read(min(max(_CHUNK, len(rest)), LONGEST_LINE + 1 - len(rest))):
        found = (rest + data).splitlines(keepends=True)
        # The last line may be incomplete, even after \r: a \n may follow.
        rest = b"" if found[-1].endswith(b"\n") else found.pop()
        yield from found
        if len(rest) > LONGEST_LINE:
            break
    if rest:
        yield rest
