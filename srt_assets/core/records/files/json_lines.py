"""The values of a JSON Lines file, one by one. A line that is not JSON becomes Unreadable, and reading continues."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from srt_assets.core.records.files.lines import lines
from srt_assets.core.records.files.strict_json import Decoder
from srt_assets.core.records.files.unreadable import Unreadable


def values(file: Path, opened: Callable[[Path], BinaryIO]) -> Iterator[Any]:
    """The value of each line that is not blank. UserError as `lines`."""
    decoder = Decoder()
    with opened(file) as source:
        for number, line in lines(source, file):
            if not line.strip():
                continue
            try:
                yield decoder.whole(line, f"line {number}")
            except json.JSONDecodeError as error:
                # JSON contains no carriage return within a string, so in such a file it ends the lines.
                if len(parts := [part for part in re.split("\r", line) if part.strip()]) > 1:
                    yield from (_value(decoder, part, number) for part in parts)
                else:
                    yield _broken(line, number, error)


def _value(decoder: Decoder, text: str, number: int) -> Any:
    try:
        return decoder.whole(text, f"line {number}")
    except json.JSONDecodeError as error:
        return _broken(text, number, error)


def _broken(text: str, number: int, error: json.JSONDecodeError) -> Unreadable:
    what = f"line {number}, column {error.colno}: broken JSON: {error.msg}"
    if number == 1 and text.strip() == "[":
        what += "; a file that holds one list has the ending .json"
    elif number == 1 and text.strip() == "{":
        what += "; an object must stand on one line, as jq -c writes it"
    return Unreadable("bad_json", text, what)
