"""Rows that could not be read: the marker that takes their place, and how many of them a file may have.

The modules that read files decide what makes a row unreadable. `forms/meaning.py` decides what a readable row means.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from srt_assets.core.errors import UserError

# Characters of an unreadable row that are kept.
KEPT = 2000
# Fewer unreadable rows never stop a run: in a small file a share means little.
TOO_MANY = 10
# After so many rows, a file of mostly unreadable rows stops the run at once.
ENOUGH = 1000

# Why a row is unreadable, and what a person can do about it.
REASONS: dict[str, str] = {
    "bad_json": "the line is not JSON: correct it, or delete it",
    "duplicate_key": "an object has the same key twice: delete the value that is not meant",
    "too_deep": "lists and objects are nested hundreds of levels deep: flatten the row, or delete it",
    "big_integer": "the row has an integer of thousands of digits: write it as text",
    "wrong_cells": "the row has more or fewer cells than the header: check its delimiters and quotes",
    "bad_value": "a text is not UTF-8 or has a NUL character, or a date or number is out of Python's range: correct it",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unreadable:
    """Takes the place of a row that could not be read.

    `reason`: a key of REASONS. `text`: the row as it is in the file, cut to KEPT characters. `detail`: where it is, and
    what is wrong.
    """

    reason: str
    text: str
    detail: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", self.text[:KEPT])


class NotText:
    """Takes the place of bytes that are not UTF-8, such as an image or a hash. No reader uses it as text."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)

    def __repr__(self) -> str:
        return f"<{self.size} bytes that are not text>"


def within(share: float, file: str, rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The rows, as long as not too many of them are unreadable.

    UserError at the end if at least TOO_MANY rows, and more than this share of all rows, are unreadable. After ENOUGH
    rows it is raised at once if they are also more than half of the rows so far.
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
            self.reasons.clear()  # so that `say` does not repeat it
            raise UserError(
                f"{self.file}: {said}; that is more than datasets.max_bad_share = {self.share:g}",
                "correct the file, or raise datasets.max_bad_share to reject only these rows",
            )

    def say(self) -> None:
        if self.reasons:
            log.warning("%s: %s; these rows are rejected", self.file, self._said())

    def _said(self) -> str:
        why = ", ".join(f"{reason}: {n:,}" for reason, n in self.reasons.most_common())
        n = self.reasons.total()
        return f"{n:,} of {self.rows:,} rows cannot be read ({why}), the first is {self.first}"
