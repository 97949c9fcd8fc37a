"""The values of a JSON array one by one, from a file of any size: memory holds one value and a buffer.

The decoder is `json`'s own, so that a value reads as it does with `json.load`: NaN, lone surrogates, large integers.
"""

import codecs
import json
from collections.abc import Callable, Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any, BinaryIO

from srt_assets.core.files import opened

CHUNK = 1 << 20
# Characters of a value; one that never ends would fill the memory.
LONGEST = 1 << 28
_BLANKS = " \t\n\r"
# An error nearer than this to the end of the buffer may be one of the buffer only: `tru`, `1e`, half an escape.
_TAIL = 16


def values(file: Path, opened: Callable[[Path], BinaryIO] = opened, chunk: int = CHUNK) -> Iterator[Any]:
    """Each value of the array in a file of UTF-8, which `opened` opens.

    Raises JSONDecodeError, with line and column in the file, where it is no JSON; UnicodeDecodeError, with the place
    in the file; NotAnArray if it holds one other value; and NoFile if it is no ordinary file.
    """
    with opened(file) as source:
        text = _Text(source, chunk)
        if text.peek() != "[":
            value = text.value()
            if text.peek():
                raise text.error("Extra data")
            raise NotAnArray(type(value).__name__)
        text.skip()
        if text.peek() != "]":
            while True:
                yield text.value()
                if text.peek() != ",":
                    break
                text.skip()
        if text.peek() != "]":
            raise text.error("Expecting ',' delimiter")
        text.skip()
        if text.peek():
            raise text.error("Extra data")


class NotAnArray(ValueError):
    """The file holds one value that is no array; the message names its type."""


class _Text:
    """The text of a file from a place on, as much as is needed, and the line and column of that place."""

    def __init__(self, source: BinaryIO, chunk: int) -> None:
        self._source, self._chunk = source, chunk
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at = "", 0
        self._bytes = 0
        self._ended = False
        # Of the text that is no longer held: its lines, and the characters of its last, unfinished one.
        self._lines, self._column = 0, 0

    def peek(self) -> str:
        """The next character that is no blank, which is then the place; '' at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _BLANKS:
                    return self._text[self._at]
                self._at += 1
            if not self._more(self._chunk):
                return ""

    def skip(self) -> None:
        self._at += 1

    def value(self) -> Any:
        """The value at the place."""
        self.peek()
        size = self._chunk
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _TAIL
                if not (cut and self._more(size)):
                    raise self.error(error.msg, error.pos) from None
            else:
                # A number may go on behind the buffer's end.
                if len(self._text) - end >= _TAIL or not self._more(size):
                    self._at = end
                    return value
            if len(self._text) > LONGEST:
                raise self.error(f"a value longer than {LONGEST >> 20} MB, which no record is")
            size *= 2  # what is read once more for a large value must not add up to its square

    def error(self, message: str, at: int | None = None) -> JSONDecodeError:
        """An error at a place of the held text, with the line and column it has in the file."""
        place = self._at if at is None else at
        error = JSONDecodeError(message, self._text, place)
        error.colno += self._column if error.lineno == 1 else 0
        error.lineno += self._lines
        return error

    def _more(self, size: int) -> bool:
        """Hold more of the file; False at its end."""
        if self._ended:
            return False
        gone = self._text[: self._at]
        self._lines += (lines := gone.count("\n"))
        self._column = len(gone) - gone.rfind("\n") - 1 if lines else self._column + len(gone)
        data = self._source.read(size)
        try:
            new = self._decode(data, final=not data)
        except UnicodeDecodeError as error:
            # Bytes of half a character were kept from the piece before; they count from there.
            error.start += self._bytes - (len(error.object) - len(data))
            raise
        self._bytes += len(data)
        self._ended = not data
        self._text, self._at = self._text[self._at :] + new, 0
        return True
