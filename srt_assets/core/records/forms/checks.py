"""Checks of fields that may change what an answer means. Each returns a reject for the field's value, or None.

Which field has which check is a table in `fields.py`.
"""

from collections.abc import Callable
from typing import Any

from srt_assets.core.records.files.json_types import type_of
from srt_assets.core.records.forms.result import Reject, named

_GOOD = {"true", "1", "yes", "good", "positive", "chosen", "correct", "accepted", "pass", "passed", "desirable"}
_BAD = {"false", "0", "no", "bad", "negative", "rejected", "incorrect", "wrong", "fail", "failed", "undesirable"}
# A tool column of text often holds an empty list, written as JSON.
_EMPTY_JSON = {"[]", "{}", "[[]]", "null", "none"}

Check = Callable[[str, Any], Reject | None]


def if_filled(reason: str) -> Check:
    def check(name: str, value: Any) -> Reject | None:
        if not value or (isinstance(value, str) and "".join(value.lower().split()) in _EMPTY_JSON):
            return None
        return Reject(reason, named(name))

    return check


def history(name: str, value: Any) -> Reject | None:
    """Earlier turns: pairs of texts, or messages. Any other value is rejected as `wrong_type`."""
    found = if_filled("has_history")(name, value)
    if found and isinstance(value, list) and not all(isinstance(turn, dict) or _is_pair(turn) for turn in value):
        return Reject("wrong_type", f"{named(name)}: a turn is not a pair of texts")
    return found


def _is_pair(turn: Any) -> bool:
    return isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(text, str) for text in turn)


def if_true(reason: str) -> Check:
    def check(name: str, value: Any) -> Reject | None:
        return Reject(reason, named(name)) if verdict(value) is True else None

    return check


def verdict(value: Any) -> bool | None:
    """Whether a label calls the answer good (True) or bad (False); None if its value is not known."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return True if value == 1 else False if value == 0 else None
    word = value.strip().lower().removesuffix(".0") if isinstance(value, str) else ""
    return True if word in _GOOD else False if word in _BAD else None


def label(name: str, value: Any) -> Reject | None:
    """A reject if a label calls the answer bad, or if its value is not known."""
    good = verdict(value)
    if good is None:
        shown = value if isinstance(value, str) else str(value) if isinstance(value, float) else type_of(value)
        return Reject("unknown_label", f"{named(name)}: {named(shown)}")
    return None if good else Reject("negative_label", named(name))


def truth(name: str, value: Any) -> Reject | None:
    """As `label`, for a field that may also hold a score: a number is not a verdict."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return None
    return label(name, value)


def mark(name: str, value: Any) -> Reject | None:
    """As `label`, for a field that may also hold a text or a score: these are no verdicts, and count as unread."""
    return Reject("negative_label", named(name)) if verdict(value) is False else None


def word(name: str, value: Any) -> Reject | None:
    """As `mark`, for a field in which 0 may be a score or a count."""
    return mark(name, value) if isinstance(value, bool | str) else None


def turns(name: str, value: Any) -> Reject | None:
    """The number of turns, or the turns themselves."""
    return None if isinstance(value, int | float) else if_filled("has_history")(name, value)


def loss(name: str, value: Any) -> Reject | None:
    """As `weight` for true, false, words and 0. Any other number is a measured loss, which does not matter here."""
    return weight(name, value) if isinstance(value, bool | str) or value == 0 else None


def weight(name: str, value: Any) -> Reject | None:
    """A reject if the weight is 0 (the answer is not to be trained on), or any other value but 1."""
    good = verdict(value)
    if good is None:
        return Reject("weighted", named(name))
    return None if good else Reject("weight_zero", named(name))


def rank(name: str, value: Any) -> Reject | None:
    rank = value.strip().removesuffix(".0") if isinstance(value, str) else value
    if rank in (0, "0") and rank is not False:
        return None
    is_number = isinstance(rank, int | float) or (isinstance(rank, str) and rank.isdigit())
    return Reject("rank_above_0" if is_number else "unknown_label", named(name))


def tree_state(name: str, value: Any) -> Reject | None:
    """A reject if the tree of messages was given up: OASST's states `aborted…` and `halted…`."""
    given_up = isinstance(value, str) and value.strip().lower().startswith(("aborted", "halted"))
    return Reject("deleted", f"{named(name)}: {named(value)}") if given_up else None


def channel(name: str, value: Any) -> Reject | None:
    return None if value == "final" else Reject("thoughts", f"{named(name)}: {named(value)}")
