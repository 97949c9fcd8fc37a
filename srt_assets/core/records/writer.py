"""Writes records, rejects, alternatives and fields to parts of the lake, and counts them for messages.

Memory holds a chunk of rows of each table, and twelve bytes per record.
"""

import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from srt_assets.core.hashing import sample_id
from srt_assets.core.lake import Lake
from srt_assets.core.records.files.unreadable import Unreadable
from srt_assets.core.records.forms.result import SENTINEL_INPUTS, Pair, Read, Reject, named
from srt_assets.core.records.ids import NEW, Ids

RECORDS, REJECTS, ALTERNATIVES, FIELDS = "raw_records", "raw_rejects", "raw_alternatives", "raw_fields"
CHUNK = 20_000
# So many records at a time are compared with all earlier ones.
_TOGETHER = 1000
# At most so many field names are counted per dataset: some files have a new field in every row.
MOST_FIELDS = 500
_FURTHER = "(further fields)"
_ROWS_FOR_KEYS = 1000
_RAW = 2000

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """Counts for the rows of one dataset. `fields`: by name and outcome, the number of rows and the first value's type.
    `keys`: field names of the first rows. `waiting`: columns of the settings that no row has had yet.
    """

    name: str
    waiting: set[str] = field(default_factory=set)
    rows: int = 0
    records: int = 0
    alternatives: int = 0
    numbers: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    duplicates_of: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    fields: dict[tuple[str, str], list[Any]] = field(default_factory=dict)
    keys: dict[str, None] = field(default_factory=dict)

    def add(self, row: Any, read: Read) -> None:
        self.rows += 1
        self.numbers += read.numbers
        if isinstance(row, dict) and (self.waiting or self.rows <= _ROWS_FOR_KEYS):
            self.waiting.difference_update(row)
            if len(self.keys) < MOST_FIELDS:
                self.keys |= dict.fromkeys(map(named, row))
        if not read.records:
            return
        self.forms[read.form] += 1
        for becomes, found in (("unread", read.unread), ("unused", read.unused)):
            for name, kind in found.items():
                key = (name, becomes)
                if key not in self.fields and len(self.fields) >= MOST_FIELDS:
                    key = (_FURTHER, becomes)
                self.fields.setdefault(key, [0, kind])[0] += 1

    def named(self, becomes: str) -> list[tuple[str, int]]:
        """The fields with this outcome, and the number of rows that have them, the most frequent first."""
        found = [(name, rows) for (name, what), (rows, _) in self.fields.items() if what == becomes]
        return sorted(found, key=lambda one: (-one[1], one[0]))

    def say(self) -> None:
        """Log one line about rejects, and one about unread fields."""
        if self.reasons:
            log.warning("dataset %r: %s%s", self.name, self.lost(), "" if self.records else f"; {self.names()}")
        if unread := self.named("unread"):
            shown = ", ".join(f"{name} ({rows:,})" for name, rows in unread[:8])
            more = f" and {len(unread) - 8} more" if len(unread) > 8 else ""
            log.warning(
                "dataset %r: fields that were not read (rows): %s%s; srt sql 'FROM raw_fields' lists all",
                self.name,
                shown,
                more,
            )

    def names(self) -> str:
        """The field names of its rows, at most 30, for a message."""
        names = list(self.keys)
        more = f" and {len(names) - 30} more" if len(names) > 30 else ""
        return f"its rows have {', '.join(names[:30]) or 'no fields'}{more}"

    def lost(self) -> str:
        """How many records and rows there are, and the number of rejects by reason."""
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in self.reasons.most_common())
        others = ", ".join(f"{n:,} of dataset {name!r}" for name, n in self.duplicates_of.most_common())
        told = f"{self.records:,} records from {self.rows:,} rows; rejected: {reasons or 'nothing'}"
        return told + (f" (duplicates: {others})" if others else "")


class _One(NamedTuple):
    """A record or a reject that waits to be compared with the earlier records."""

    place: dict[str, Any]
    found: Pair | Reject
    id: str
    row: Any


class Writer:
    """Distributes the results over the four tables, and writes these in parts of CHUNK rows."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.parts: dict[str, list[str]] = {RECORDS: [], REJECTS: [], ALTERNATIVES: [], FIELDS: []}
        self.tallies: list[Tally] = []
        self.sentinels = 0
        self.seen = 0
        self._ids = Ids()
        # Dataset and file by number.
        self._sources: list[tuple[str, str]] = []
        self._waiting: list[_One] = []
        self._rows: dict[str, list[dict[str, Any]]] = {name: [] for name in self.parts}

    def begin(self, dataset: str, columns: set[str]) -> Tally:
        """Start a dataset, to which all later rows belong. `columns`: the columns that the settings name."""
        self.tallies.append(Tally(dataset, columns))
        return self.tallies[-1]

    def add(self, file: str, index: int, row: Any, read: Read) -> None:
        """Take a row of the dataset that was begun last."""
        self.seen += 1
        tally = self.tallies[-1]
        tally.add(row, read)
        if not self._sources or self._sources[-1] != (tally.name, file):
            self.sort()
            self._sources.append((tally.name, file))
        place = {"dataset": tally.name, "source_file": file, "source_index": index}
        first = ""
        for pair in read.records:
            self._waiting.append(_One(place, pair, id := sample_id(*pair), row))
            first = first or id
        for reject in read.rejects:
            self._waiting.append(_One(place, reject, "", row))
        for other in read.alternatives:
            at = index if other.row is None else other.row
            facts = {"kind": other.kind, "label": other.label, "response": other.response}
            self._put(ALTERNATIVES, {"sample_id": first, "source_file": file, "source_index": at, **facts})
        tally.alternatives += len(read.alternatives)
        if len(self._waiting) >= _TOGETHER:
            self.sort()

    def sort(self) -> None:
        """Compare the waiting records with earlier ones, in order, and write them. All are from the current source."""
        if not self._waiting:
            return
        tally, source = self.tallies[-1], len(self._sources) - 1
        ids = [one.id for one in self._waiting if one.id]
        of = iter(self._ids.add(ids, [source] * len(ids)))
        for place, found, id, row in self._waiting:
            if isinstance(found, Pair):
                if (known := next(of)) == NEW:
                    tally.records += 1
                    self.sentinels += found.input.strip().lower() in SENTINEL_INPUTS
                    self._put(RECORDS, {"sample_id": id, **found._asdict(), **place})
                    continue
                name, file = self._sources[known]
                found = Reject("duplicate", f"as {id} of dataset {name}, {file}")
                if name != tally.name:
                    tally.duplicates_of[name] += 1
            tally.reasons[found.reason] += 1
            self._put(REJECTS, {**place, "reason": found.reason, "detail": found.detail, "raw": shown(row)[:_RAW]})
        self._waiting = []

    def end(self) -> Tally:
        """The dataset has no further rows."""
        self.sort()
        tally = self.tallies[-1]
        for (name, becomes), (rows, kind) in sorted(tally.fields.items()):
            self._put(FIELDS, {"dataset": tally.name, "field": name, "becomes": becomes, "n_rows": rows, "type": kind})
        return tally

    def flush(self) -> None:
        """Write all that was added."""
        for table in self.parts:
            self._write(table)

    def _put(self, table: str, row: dict[str, Any]) -> None:
        rows = self._rows[table]
        rows.append(row)
        if len(rows) >= CHUNK:
            self._write(table)

    def _write(self, table: str) -> None:
        if self._rows[table]:
            self.parts[table].append(self.lake.write_part(table, self._rows[table]))
            self._rows[table] = []


def shown(row: Any, ascii: bool = True) -> str:
    """A row as it is stored in the rejects. An unreadable row is stored as its text in the file."""
    return as_json(row.text if isinstance(row, Unreadable) else row, ascii)


def as_json(row: Any, ascii: bool = True) -> str:
    """Any row as JSON, in ASCII or in UTF-8 with escapes for what UTF-8 cannot hold. Never fails."""
    try:
        text = json.dumps(row, default=str, ensure_ascii=ascii)
    except (ValueError, TypeError, RecursionError, OverflowError):
        text = json.dumps(_tamed(row, 20), default=str, ensure_ascii=ascii)
    return text.encode("utf-8", "backslashreplace").decode()


def _tamed(value: Any, depth: int) -> Any:
    """The value without what JSON cannot write: integers of thousands of digits, keys other than text, great depth."""
    if isinstance(value, int) and value.bit_length() > 10_000:
        return f"(an integer of about {round(value.bit_length() * 0.30103, -1):,.0f} digits)"
    if isinstance(value, dict):
        if not depth:
            return "{…}"
        return {key if isinstance(key, str) else named(key): _tamed(inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_tamed(inner, depth - 1) for inner in value] if depth else "[…]"
    if value is None or isinstance(value, str | int | float):
        return value
    return f"({type(value).__name__})"
