"""The values of a JSON array one by one, from a file of any size: memory holds one value and a buffer.

The array is the file, or the one list of objects in the object that the file is. The decoder is `json`'s own, so that a
value reads as it does with `json.load`: NaN, lone surrogates; strict_json.py says what is given as Unreadable.
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
from srt_assets.core.records.result import type_of
from srt_assets.core.records.strict_json import Decoder, too_deep
from srt_assets.core.records.unreadable import KEPT, Unreadable

CHUNK = 1 << 20
# Characters of a value; one that never ends would fill the memory.
LONGEST = 1 << 28
_BLANKS = " \t\n\r"
# An error nearer than this to the end of the buffer may be one of the buffer only: `tru`, `1e`, half an escape.
_TAIL = 16
# A text, one whose end is not held, or a bracket.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|"|[\[\]{}]', re.DOTALL)

log = logging.getLogger(__name__)


def values(file: Path, opened: Callable[[Path], BinaryIO] = opened, chunk: int = CHUNK) -> Iterator[Any]:
    """Each value of the array in a file of UTF-8, which `opened` opens.

    Raises JSONDecodeError, with line and column in the file, where it is no JSON; NotUtf8, with line and byte in the
    file; NotAnArray if it holds one other value; and NoFile if it is no ordinary file.
    """
    with opened(file) as source:
        text = _Text(source, chunk)
        kind = names = ""
        if not text.peek():  # an empty file, as of JSON Lines
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
    """The values of the array that begins at the place."""
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
    """The values of the one list of objects in the object that begins at the place.

    Gives back what the object is if it has no such list, else the name of the list, and those of all keys.
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
    """The file holds one value that is no array; the message names its type, and the keys of an object."""


class NotUtf8(ValueError):
    """Bytes that are not UTF-8. `line` in the file, from 1; `start`: their place in the file, in bytes from 0."""

    def __init__(self, line: int, start: int) -> None:
        super().__init__(f"line {line}: byte {start} of the file is not UTF-8")
        self.line, self.start = line, start


class _Text:
    """The text of a file from a place on, as much as is needed, and the line and column of that place."""

    def __init__(self, source: BinaryIO, chunk: int) -> None:
        self._source, self._chunk = source, chunk
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = Decoder().at
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

    def begins_list_of_objects(self) -> bool:
        """Whether the first value of the array at the place is an object; the place stays."""
        after = self._at + 1
        while True:
            if inner := self._text[after:].lstrip(_BLANKS):
                return inner[0] == "{"
            after -= self._at  # what is before the place is given up
            if not self._more(self._chunk):
                return False

    def value(self) -> Any:
        """The value at the place."""
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
                # A number may go on behind the buffer's end.
                if len(self._text) - end >= _TAIL or not self._more(size):
                    if isinstance(value, Unreadable):
                        value = dataclasses.replace(value, detail=f"line {self._line()}: {value.detail}")
                    self._at = end
                    return value
            if len(self._text) > LONGEST:
                raise self._too_long()
            size *= 2  # what is read once more for a large value must not add up to its square

    def _skipped(self, size: int) -> Unreadable:
        """The value at the place, too deep to be read: only its brackets are counted."""
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
                raise self.error("a value that is never closed")
            size *= 2

    def _too_long(self) -> JSONDecodeError:
        return self.error(f"a value longer than {LONGEST >> 20} MB, which no record is")

    def _line(self) -> int:
        return self._lines + self._text.count("\n", 0, self._at) + 1

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
            start = error.start + self._bytes - (len(error.object) - len(data))
            line = self._lines + self._text.count("\n", self._at) + error.object[: error.start].count(b"\n") + 1
            raise NotUtf8(line, start) from None
        self._bytes += len(data)
        self._ended = not data
        self._text, self._at = self._text[self._at :] + new, 0
        return True
