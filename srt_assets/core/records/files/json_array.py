"""The values of a JSON array one by one, from a file of any size. Memory holds one value and a buffer.

The array is the whole file, or the only list of objects in an object. The decoder is that of `json`, so values such as
NaN and lone surrogates are read as `json.load` reads them. strict_json.py lists the values that become Unreadable.
"""

import codecs
import dataclasses
import logging
import re
from collections.abc import Callable, Generator, Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any, BinaryIO

from srt_assets.core.files import opened
from srt_assets.core.records.files.json_types import type_of
from srt_assets.core.records.files.strict_json import Decoder, too_deep
from srt_assets.core.records.files.unreadable import KEPT, Unreadable

CHUNK = 1 << 20
# Characters. A longer value could fill the memory.
LONGEST = 1 << 28
_BLANKS = " \t\n\r"
# An error this near to the end of the buffer may only mean that more must be read: `tru`, `1e`, half an escape.
_TAIL = 16
# A complete string, the quote that begins an incomplete one, or a bracket.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|"|[\[\]{}]', re.DOTALL)

log = logging.getLogger(__name__)


def values(file: Path, opened: Callable[[Path], BinaryIO] = opened, chunk: int = CHUNK) -> Iterator[Any]:
    """Each value of the array in a UTF-8 file, which `opened` opens.

    Raises JSONDecodeError with line and column if the file is not valid JSON, NotUtf8 with line and byte if it is not
    UTF-8, NotAnArray if it holds another value than an array, and NoFile if it is not an ordinary file.
    """
    with opened(file) as source:
        text = _Text(source, chunk)
        kind = names = ""
        if not text.peek():  # an empty file has no rows, as in JSON Lines
            return
        if text.peek() == "[":
            yield from _items(text)
        elif text.peek() == "{":
            kind, names = yield from _list_in_object(text)
        else:
            kind = type_of(text.value())
        if text.peek():
            raise text.error("Extra data")
        if kind:
            raise NotAnArray(kind)
        if names:
            log.warning("%s holds an object; its rows are %s", file, names)


def _items(text: "_Text") -> Iterator[Any]:
    """The values of the array that begins at the current position."""
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


def _list_in_object(text: "_Text") -> Generator[Any, None, tuple[str, str]]:
    """The values of the only list of objects in the object that begins at the current position.

    Returns two texts, one of them empty: what the object is if it has no such list, or the list's name and all keys.
    """
    names: list[str] = []
    taken = None
    text.skip()
    while text.peek() != "}" or names:
        if text.peek() != '"':
            raise text.error("Expecting property name enclosed in double quotes")
        names.append(name := text.value())
        if text.peek() != ":":
            raise text.error("Expecting ':' delimiter")
        text.skip()
        if text.peek() != "[":
            text.value()
        elif text.begins_list_of_objects():
            if taken is not None:
                raise NotAnArray(f"object of several lists ({taken[:80]!r}, {name[:80]!r})")
            taken = name
            yield from _items(text)
        else:
            for _ in _items(text):
                pass
        if text.peek() != ",":
            break
        text.skip()
    if text.peek() != "}":
        raise text.error("Expecting ',' delimiter")
    text.skip()
    listed = ", ".join(repr(name[:80]) for name in names[:20])
    if taken is None:
        return f"object (its keys: {listed or 'none'})", ""
    return "", f"the list {taken[:80]!r} (its keys: {listed})"


class NotAnArray(ValueError):
    """The file holds a value that is not an array. The message names its type, and the keys of an object."""


class NotUtf8(ValueError):
    """Bytes that are not UTF-8. `line`: counted from 1; `start`: their offset in the file, in bytes from 0."""

    def __init__(self, line: int, start: int) -> None:
        super().__init__(f"line {line}: byte {start} of the file is not UTF-8")
        self.line, self.start = line, start


class _Text:
    """The text of a file from the current position on, read as needed, and the line and column of that position."""

    def __init__(self, source: BinaryIO, chunk: int) -> None:
        self._source, self._chunk = source, chunk
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = Decoder().at
        self._text, self._at = "", 0
        self._bytes = 0
        self._ended = False
        # Of the text that was dropped: the number of its lines, and of the characters in its last, incomplete line.
        self._lines, self._column = 0, 0

    def peek(self) -> str:
        """Moves to the next character that is not blank and returns it; '' at the end of the file."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _BLANKS:
                    return self._text[self._at]
                self._at += 1
            if not self._more(self._chunk):
                return ""

    def skip(self) -> None:
        self._at += 1

    def begins_list_of_objects(self) -> bool:
        """Whether the first value of the array at the current position is an object. Does not move."""
        after = self._at + 1
        while True:
            if inner := self._text[after:].lstrip(_BLANKS):
                return inner[0] == "{"
            after -= self._at  # reading more drops the text before the position
            if not self._more(self._chunk):
                return False

    def value(self) -> Any:
        """Reads the value at the current position."""
        self.peek()
        size = self._chunk
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except RecursionError:
                return self._skipped(size)
            except JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _TAIL
                if not (cut and self._more(size)):
                    raise self.error(error.msg, error.pos) from None
            else:
                # A number may continue after the end of the buffer.
                if len(self._text) - end >= _TAIL or not self._more(size):
                    if isinstance(value, Unreadable):
                        value = dataclasses.replace(value, detail=f"line {self._line()}: {value.detail}")
                    self._at = end
                    return value
            if len(self._text) > LONGEST:
                raise self._too_long()
            size *= 2  # so that the time for a large value stays linear

    def _skipped(self, size: int) -> Unreadable:
        """Skips the value at the current position, which is nested too deeply: only its brackets are counted."""
        depth, seen = 0, self._at
        while True:
            for found in _TOKEN.finditer(self._text, seen):
                if found[0] == '"':
                    break
                seen = found.end()
                depth += (found[0] in "[{") - (found[0] in "]}")
                if not depth:
                    value = too_deep(self._text[self._at : min(seen, self._at + KEPT)], f"line {self._line()}")
                    self._at = seen
                    return value
            if len(self._text) > LONGEST:
                raise self._too_long()
            seen -= self._at
            if not self._more(size):
                raise self.error("a value is never closed")
            size *= 2

    def _too_long(self) -> JSONDecodeError:
        return self.error(f"a value is longer than {LONGEST >> 20} MB")

    def _line(self) -> int:
        return self._lines + self._text.count("\n", 0, self._at) + 1

    def error(self, message: str, at: int | None = None) -> JSONDecodeError:
        """An error at a position in the buffer, with its line and column in the file."""
        place = self._at if at is None else at
        error = JSONDecodeError(message, self._text, place)
        error.colno += self._column if error.lineno == 1 else 0
        error.lineno += self._lines
        return error

    def _more(self, size: int) -> bool:
        """Reads more of the file into the buffer. False at the end of the file."""
        if self._ended:
            return False
        gone = self._text[: self._at]
        self._lines += (lines := gone.count("\n"))
        self._column = len(gone) - gone.rfind("\n") - 1 if lines else self._column + len(gone)
        data = self._source.read(size)
        try:
            new = self._decode(data, final=not data)
        except UnicodeDecodeError as error:
            # The decoder puts the bytes of an incomplete character from the previous read before the new data.
            start = error.start + self._bytes - (len(error.object) - len(data))
            line = self._lines + self._text.count("\n", self._at) + error.object[: error.start].count(b"\n") + 1
            raise NotUtf8(line, start) from None
        self._bytes += len(data)
        self._ended = not data
        self._text, self._at = self._text[self._at :] + new, 0
        return True
