"""Rows that could not be read: the marker that stands in their place, and how many of them a file may have.

What makes a row unreadable is decided by the readers, what a readable row means in formats.py.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from srt_assets.core.errors import UserError

# Characters of an unreadable row that are kept.
KEPT = 2000
# Fewer bad rows never end a run: of a small file a share says nothing.
TOO_MANY = 10
# A file of nothing but bad rows is given up after so many.
ENOUGH = 1000

# Why a row is unreadable, and what a person may do about it.
REASONS: dict[str, str] = {
    "bad_json": "the line is no JSON: correct or delete it",
    "duplicate_key": "an object names a key twice, and nobody knows which of the values is meant",
    "too_deep": "lists and objects stand hundreds deep within each other, which no record needs",
    "big_integer": "an integer of thousands of digits: write it as a text",
    "wrong_cells": "the row has more or fewer cells than the header",
    "bad_value": "a value that is no text of UTF-8, or no date or number that Python can hold",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unreadable:
    """Stands in the place of a row that could not be read.

    `reason`: one of REASONS; `text`: the row as it stands in the file, its first KEPT characters; `detail`: where it
    stands, and what is wrong.
    """

    reason: str
    text: str
    detail: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", self.text[:KEPT])


class NotText:
    """Stands in the place of bytes that are no UTF-8: an image, a hash. It is no text, so nothing takes it for one."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)

    def __repr__(self) -> str:
        return f"<{self.size} bytes that are no text>"


def within(share: float, file: str, rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The rows, as long as not too many of them are unreadable.

    UserError at the end if at least TOO_MANY rows, and more than this share of all, are unreadable; already from ENOUGH
    rows on if they are more than half of all as well.
    """
    bad = _Bad(share, file)
    try:
        for index, row in rows:
            bad.rows += 1
            if isinstance(row, Unreadable):
                bad.add(index, row)
            yield index, row
        bad.check(share)
    finally:
        bad.say()


class _Bad:
    def __init__(self, share: float, file: str) -> None:
        self.share, self.file = share, file
        self.rows = 0
        self.reasons: Counter[str] = Counter()
        self.first = ""

    def add(self, index: int, row: Unreadable) -> None:
        self.first = self.first or f"row {index + 1:,} ({row.detail})"
        self.reasons[row.reason] += 1
        if self.rows >= ENOUGH:
            self.check(max(self.share, 0.5))

    def check(self, share: float) -> None:
        n = self.reasons.total()
        if n >= TOO_MANY and n > share * self.rows:
            said = self._said()
            self.reasons.clear()  # said now
            raise UserError(
                f"{self.file}: {said}; that is more than datasets.max_bad_share = {self.share:g}",
                "correct the file; or, to leave these rows out, set a higher datasets.max_bad_share",
            )

    def say(self) -> None:
        if self.reasons:
            log.warning("%s: %s; they are in raw_rejects", self.file, self._said())

    def _said(self) -> str:
        why = ", ".join(f"{reason}: {n:,}" for reason, n in self.reasons.most_common())
        n = self.reasons.total()
        return f"{n:,} of {self.rows:,} rows cannot be read ({why}), the first is {self.first}"
