"""Text to a JSON value as `json` reads it, except for what `json` would lose or break on: that becomes Unreadable.

An object that names a key twice, an integer of thousands of digits, brackets hundreds deep. NaN, Infinity and halves of
surrogate pairs stay what `json` makes of them.
"""

import json
from typing import Any

from srt_assets.core.records.unreadable import Unreadable

# Python's own limit, for the time it takes grows with the square; set here, for the environment can change Python's.
DIGITS = 4300
# Far below Python's limit, which depends on who calls. No row of data goes 20 deep.
DEEPEST = 200


class Decoder:
    """Reads one value after the other. Not for several threads at a time."""

    def __init__(self) -> None:
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._integer)
        self._fault: tuple[str, str] | None = None

    def whole(self, text: str, place: str) -> Any:
        """The value of a text that is one value; Unreadable, with its `place`, for one of the above.

        JSONDecodeError if it is no JSON.
        """
        self._fault = None
        try:
            value = self._json.decode(text)
        except RecursionError:
            return too_deep(text, place)
        return self._judged(value, text, 0, len(text), place)

    def at(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins there, and where it ends. JSONDecodeError; RecursionError if its end was not reached.

        The detail of an Unreadable lacks its place.
        """
        self._fault = None
        value, end = self._json.raw_decode(text, start)
        return self._judged(value, text, start, end, ""), end

    def _judged(self, value: Any, text: str, start: int, end: int, place: str) -> Any:
        if self._fault:
            reason, what = self._fault
            return Unreadable(reason, text[start:end], _placed(place, what))
        if text.count("[", start, end) + text.count("{", start, end) > DEEPEST and _is_deep(value):
            return too_deep(text[start:end], place)
        return value

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self._fault = "duplicate_key", f"the key {twice[:80]!r} stands in an object twice"
        return found

    def _integer(self, digits: str) -> int:
        if len(digits) <= DIGITS:
            try:
                return int(digits)
            except ValueError:  # the environment has set a lower limit
                pass
        self._fault = "big_integer", f"an integer of {len(digits):,} digits"
        return 0


def too_deep(text: str, place: str) -> Unreadable:
    """The marker for a row of more than DEEPEST brackets within each other."""
    return Unreadable("too_deep", text, _placed(place, f"lists and objects more than {DEEPEST} deep"))


def _placed(place: str, what: str) -> str:
    return f"{place}: {what}" if place else what


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST + 1):
        lists = [inner for inner in level if isinstance(inner, list | dict)]
        level = [each for inner in lists for each in (inner.values() if isinstance(inner, dict) else inner)]
        if not level:
            return False
    return True
