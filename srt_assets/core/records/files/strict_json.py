"""Text to a JSON value as `json` reads it, except for what `json` would lose or fail on: this becomes Unreadable.

It is an object with the same key twice, an integer of thousands of digits, or brackets nested hundreds deep. NaN,
Infinity and lone surrogates stay as `json` reads them.
"""

import json
from typing import Any

from srt_assets.core.records.files.unreadable import Unreadable

# Python's default limit: the time to convert grows with the square. The environment may change Python's own limit.
DIGITS = 4300
# Far below Python's recursion limit, which depends on the caller's depth. Real rows are less than 20 levels deep.
DEEPEST = 200


class Decoder:
    """Decodes one value after the other. Not safe for several threads."""

    def __init__(self) -> None:
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._integer)
        self._fault: tuple[str, str] | None = None

    def whole(self, text: str, place: str) -> Any:
        """The value of a text that holds exactly one; Unreadable, with `place` in its detail, in the cases above.

        JSONDecodeError if the text is not JSON.
        """
        self._fault = None
        try:
            value = self._json.decode(text)
        except RecursionError:
            return too_deep(text, place)
        return self._judged(value, text, 0, len(text), place)

    def at(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at `start`, and its end. JSONDecodeError; RecursionError if it is nested too deeply.

        The detail of an Unreadable does not say where it is.
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
            self._fault = "duplicate_key", f"an object has the key {twice[:80]!r} twice"
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
    """The marker for a row that is nested more than DEEPEST levels deep."""
    return Unreadable("too_deep", text, _placed(place, f"lists and objects are nested more than {DEEPEST} deep"))


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
