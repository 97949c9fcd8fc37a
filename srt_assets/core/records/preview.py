"""What the rows of a dataset would become in a run: forms, records, fields, rejects with examples.

Uses the functions of the stage `raw_dataset` and writes nothing. `commands/preview.py` prints the result.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from srt_assets.core import files
from srt_assets.core.lake import Lake
from srt_assets.core.records.files import hub
from srt_assets.core.records.files.find import dataset_files
from srt_assets.core.records.files.json_types import type_of
from srt_assets.core.records.files.unreadable import TOO_MANY, Unreadable
from srt_assets.core.records.forms.result import Pair, Read, is_filled, named
from srt_assets.core.records.forms.rules import Rules
from srt_assets.core.records.raw import read_before, rows_of
from srt_assets.core.records.writer import MOST_FIELDS, shown
from srt_assets.settings import Dataset

SHOWN = 3
# Records whose lengths in tokens are measured.
MEASURED = 500
_RAW = 2000


@dataclass(frozen=True)
class Place:
    """Where a row is: its file, and its index in the file, counted from 0."""

    file: str
    index: int


@dataclass
class FieldCount:
    """A field: the number of rows where it is filled, the JSON type of its first value, and what becomes of it."""

    rows: int = 0
    type: str = ""
    becomes: Counter[str] = field(default_factory=Counter)


@dataclass
class Example:
    """A rejected row: where it is, the detail of the reject, and the row as JSON, cut to a maximum length."""

    place: Place
    detail: str
    row: str


@dataclass
class Preview:
    """The result for the first `rows` rows of a dataset. `whole`: the dataset has no further rows."""

    dataset: Dataset
    rows: int = 0
    whole: bool = True
    n_records: int = 0
    n_alternatives: int = 0
    n_unreadable: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    fields: dict[str, FieldCount] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Example] = field(default_factory=dict)
    records: list[tuple[Place, str, Pair]] = field(default_factory=list)
    to_measure: list[Pair] = field(default_factory=list)

    @property
    def is_refused(self) -> bool:
        """Whether a run would end with an error, because too many rows cannot be read."""
        return self.n_unreadable >= TOO_MANY and self.n_unreadable > self.dataset.max_bad_share * self.rows


def preview(lake: Lake, dataset: Dataset, at_most: int = 0) -> Preview:
    """Read the first `at_most` rows (0 = all); of a hub dataset, at the commit that the home has read.

    Raises UserError as a run would. Duplicates are not detected.
    """
    found = Preview(dataset)
    paths = dataset_files(dataset) if dataset.path else []
    commit = "" if dataset.path else hub.commit_in(hub.facts(dataset, read_before(lake), asks=False))
    # All unreadable rows are counted, also where a run would end.
    patient = dataset.model_copy(update={"max_bad_share": 1.0})
    rows = rows_of(patient, Rules.of(dataset), paths, files.opened, commit)
    for file, index, row, read in islice(rows, at_most or None):
        _add(found, Place(file, index), row, read)
    found.whole = next(rows, None) is None
    return found


def _add(found: Preview, place: Place, row: Any, read: Read) -> None:
    found.rows += 1
    found.n_unreadable += isinstance(row, Unreadable)
    found.n_records += len(read.records)
    found.n_alternatives += len(read.alternatives)
    if read.form:
        found.forms[read.form] += 1
    for pair in read.records:
        if len(found.records) < SHOWN:
            found.records.append((place, read.form, pair))
        if len(found.to_measure) < MEASURED:
            found.to_measure.append(pair)
    for reject in read.rejects:
        found.reasons[reject.reason] += 1
        if reject.reason not in found.examples:
            found.examples[reject.reason] = Example(place, reject.detail, shown(row, ascii=False)[:_RAW])
    if isinstance(row, dict):
        _count_fields(found.fields, row, read)


def _count_fields(fields: dict[str, FieldCount], row: dict[str, Any], read: Read) -> None:
    for name, value in row.items():
        if is_filled(value):
            _count(fields, named(str(name)), type_of(value), _becomes(named(str(name)), read))
    # Fields of messages and of an unwrapped object are not fields of the row; their names are paths.
    for kind, of_it in (("not read", read.unread), ("not used", read.unused)):
        for name, type in of_it.items():
            if name not in row:
                _count(fields, name, type, kind)


def _becomes(name: str, read: Read) -> str:
    if name in read.unread:
        return "not read"
    if name in read.unused:
        return "not used"
    return "read" if read.records else "in rejected rows"


def _count(fields: dict[str, FieldCount], name: str, type: str, becomes: str) -> None:
    if (
        name not in fields and len(fields) >= MOST_FIELDS and becomes != "read"
    ):  # few fields are read, so these are all listed
        return
    one = fields.setdefault(name, FieldCount(type=type))
    one.rows += 1
    one.becomes[becomes] += 1
