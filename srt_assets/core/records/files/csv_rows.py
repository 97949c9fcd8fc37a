"""The rows of a CSV or TSV file, one by one, as objects of texts. Numbers stay text; an empty cell is ''.

Quotes are read strictly. After a wrong quote the start of the next row is not known, so reading ends with an error. A
row with too many or too few cells becomes Unreadable.
"""

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from srt_assets.core.errors import UserError
from srt_assets.core.records.files.lines import lines
from srt_assets.core.records.files.unreadable import Unreadable

# Characters. Without a limit, an unclosed quote would take the rest of the file into one cell.
LONGEST_CELL = 1 << 24
_OTHERS = {";": ";", "\t": r"\t", "|": "|", ",": ","}
_QUOTES = 'put a cell with quotes, commas or line ends into quotes, and write each quote in it twice: "a ""b"" c"'


def rows(file: Path, opened: Callable[[Path], BinaryIO], delimiter: str) -> Iterator[Any]:
    """One object per row; its keys are in the first line. UserError names the line whose quotes or names are wrong."""
    # The csv module has one limit for the whole process.
    if csv.field_size_limit() < LONGEST_CELL:
        csv.field_size_limit(LONGEST_CELL)
    with opened(file) as source:
        texts: Iterator[str] = (text for _, text in lines(source, file, any_end=True))
        first = next(texts, "")
        if told := re.fullmatch(r"sep=([^\r\n])[\r\n]*", first):  # Excel writes this line
            delimiter, before = told[1], 1
        else:
            texts, before = _with(first, texts), 0
        header: list[str] = []
        for start, end, cells in _read(file, texts, delimiter, before):
            if not header:
                header = _names(file, cells, delimiter)
            elif len(cells) != len(header):
                what = f"line {start}: cells: {len(cells)}, columns in the header: {len(header)}"
                yield Unreadable("wrong_cells", delimiter.join(cells), what)
            elif any("\0" in cell for cell in cells):
                yield Unreadable("bad_value", delimiter.join(cells), f"line {end}: a cell contains a NUL character")
            else:
                yield dict(zip(header, cells, strict=True))


def _with(first: str, texts: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from texts


def _read(file: Path, texts: Iterator[str], delimiter: str, before: int) -> Iterator[tuple[int, int, list[str]]]:
    """Numbers of the first and last line of each row, and its cells. Blank lines are skipped."""
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    while True:
        start = before + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{file}, {_where(start, before + reader.line_num, str(error))}", _QUOTES) from None
        if cells:
            yield start, before + reader.line_num, cells


def _where(start: int, end: int, said: str) -> str:
    if said == "unexpected end of data":
        return f"line {start}: a quote in the row that begins here is never closed"
    if said.startswith("field larger"):
        return (
            f"line {start}: a cell has more than {csv.field_size_limit() >> 20} million characters; "
            "its closing quote may be missing"
        )
    return f"line {end}: broken quotes in the row that begins in line {start}: {said}"


def _names(file: Path, cells: list[str], delimiter: str) -> list[str]:
    """The names of the columns. One may be empty: pandas writes its index without a name."""
    if twice := sorted({name for name in cells if cells.count(name) > 1}):
        raise UserError(f"{file}: two columns are named {twice[0]!r}", "give each column a name of its own in line 1")
    if len(cells) == 1 and (other := next((o for o in _OTHERS if o != delimiter and o in cells[0]), "")):
        raise UserError(
            f"{file}: the header has only one column, {cells[0][:80]!r}",
            f'if its cells are separated by {_OTHERS[other]}, set datasets.delimiter = "{_OTHERS[other]}"',
        )
    return cells
