"""The stage behind the asset `raw_dataset`: every row of the settings' files becomes a record or a reject."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from srt_assets.core.errors import UserError
from srt_assets.core.hashing import Fingerprint, sample_id
from srt_assets.core.lake import Lake
from srt_assets.core.outcome import Description, Made
from srt_assets.core.records import hub, inputs
from srt_assets.core.records.find import dataset_files
from srt_assets.core.records.formats import SENTINEL_INPUTS, Pair, Reject, detect, to_pair
from srt_assets.core.records.ids import Ids
from srt_assets.core.records.read import dataset_rows
from srt_assets.core.records.unreadable import Unreadable
from srt_assets.core.stage import Stage, Work
from srt_assets.core.tables import rows_as_dicts
from srt_assets.settings import Dataset, Settings

RECORDS, REJECTS = "raw_records", "raw_rejects"
CHUNK = 20_000
# Rows that are compared with all before them at a time.
_TOGETHER = 1000

log = logging.getLogger(__name__)


class RawDataset(Stage):
    """Instruction-response pairs from the settings' files, with content ids; other rows are rejected with a reason."""

    asset = "raw_dataset"
    # Rejects are committed first: who sees the new records also finds the new rejects.
    tables = (RECORDS, REJECTS)
    version = "1"
    group = "raw"
    kinds = frozenset({"parquet"})

    def wanted(self, settings: Settings, lake: Lake, student: str = "") -> Fingerprint:
        """The bytes of the settings' files and how to read them."""
        if not settings.datasets:
            raise UserError("no dataset in the settings", "add a [[datasets]] block with name and path to srt.toml")
        facts = []
        made = lake.manifest(RECORDS)
        known = {one["name"]: one for one in (made.inputs if made else {}).get("datasets", ())}
        paths = [dataset_files(dataset) if dataset.path else [] for dataset in settings.datasets]
        sums = inputs.sums(lake.home, chain(*paths))
        for dataset, of_it in zip(settings.datasets, paths, strict=True):
            rules = dataset.model_dump(include={"name", "format", "limit", "multi_turn"})
            if dataset.path:
                rules["files"] = [sums[path] for path in of_it]
            else:
                rules["hub"] = hub.facts(dataset, known)
            if dataset.delimiter:
                rules["delimiter"] = dataset.delimiter
            facts.append(rules)
        return Fingerprint.of(stage=RECORDS, version=self.version, datasets=facts)

    def make(self, work: Work) -> Made:
        """Read all datasets. UserError names the file and line that cannot be read, StageError a file that changed."""
        writer = _Writer(work.lake)
        paths = [_files(*each) for each in zip(work.settings.datasets, work.want.facts["datasets"], strict=True)]
        reading = inputs.Reading(work.lake.home, {path: one for of_it in paths for path, one in of_it.items()})
        for dataset, of_it, rules in zip(work.settings.datasets, paths, work.want.facts["datasets"], strict=True):
            known, reasons = writer.kept, writer.reasons.copy()
            for file, index, row, format in _rows(dataset, of_it, reading, hub.commit_in(rules.get("hub"))):
                writer.add(dataset, file, index, row, format)
                if writer.seen % 1000 == 0:
                    work.progress(writer.seen, 0, "rows")
            writer.sort()
            if writer.kept == known:
                _warn_of_no_record(dataset, writer.reasons - reasons)
        reading.check()
        writer.flush()
        work.progress(writer.seen, writer.seen, "rows")
        stats = {"rows_read": writer.seen, **{f"rejected_{r}": n for r, n in sorted(writer.reasons.items())}}
        if writer.sentinels:
            stats["sentinel_inputs"] = writer.sentinels
            log.warning("%d records have an input such as '<noinput>'; they are kept as they are", writer.sentinels)
        return Made({RECORDS: writer.records, REJECTS: writer.rejects}, stats)

    def describe(self, lake: Lake, student: str = "") -> Description:
        """Counts by reason, lengths in characters, five records."""
        with lake.connect() as con:
            [numbers] = rows_as_dicts(
                con.execute(
                    "SELECT (SELECT count(*) FROM raw_records) AS records, "
                    "(SELECT count(*) FROM raw_rejects) AS rejected, "
                    "(SELECT count(*) FROM raw_records WHERE input <> '') AS with_input"
                )
            )
            reasons = con.execute("SELECT reason, count(*) FROM raw_rejects GROUP BY 1 ORDER BY 1").fetchall()
            sample = rows_as_dicts(
                con.execute(
                    "SELECT sample_id, dataset, left(instruction, 200) AS instruction, left(input, 200) AS input, "
                    "left(response, 200) AS response FROM raw_records ORDER BY dataset, source_index LIMIT 5"
                )
            )
            lengths = con.execute("SELECT length(response)::DOUBLE FROM raw_records USING SAMPLE 20000 ROWS").fetchall()
        numbers |= {f"rejected_{reason}": n for reason, n in reasons}
        return Description(numbers, sample, ("response length (characters)", [n for (n,) in lengths]))


STAGE = RawDataset()


def _warn_of_no_record(dataset: Dataset, reasons: Counter[str]) -> None:
    """A wrong format or keys of other names reject every row: said at once, not found in a table later."""
    why = ", ".join(f"{reason}: {n}" for reason, n in reasons.most_common()) or "it has no rows"
    log.warning(
        "dataset %r gives no record (%s). Alpaca rows have instruction, input and output; ShareGPT rows conversations; "
        "the third format messages",
        dataset.name,
        why,
    )


def _files(dataset: Dataset, rules: Mapping[str, Any]) -> dict[Path, str]:
    """The files of a dataset with the sums that are wanted. StageError if others are there by now."""
    paths = dataset_files(dataset) if dataset.path else []
    if len(paths) != len(rules.get("files", ())):
        raise inputs.changed(dataset.path)
    return dict(zip(paths, rules.get("files", ()), strict=True))


def _rows(
    dataset: Dataset, paths: Iterable[Path], reading: inputs.Reading, commit: str
) -> Iterator[tuple[str, int, Any, str]]:
    format, of_file = "", ""
    for name, index, row in dataset_rows(dataset, paths, reading.opened, commit):
        if name != of_file:
            format, of_file = "" if dataset.format == "auto" else dataset.format, name
        if not format and isinstance(row, dict):
            format = detect(row)
        yield name, index, row, format or "alpaca"


class _Row(NamedTuple):
    """A row as read, and what it is: a pair with its id, or a reject."""

    place: dict[str, Any]
    pair: Pair | Reject
    id: str
    row: Any


class _Writer:
    """Sorts rows into records and rejects and writes them in parts of CHUNK rows, so that memory stays flat."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.records: list[str] = []
        self.rejects: list[str] = []
        self.seen = 0
        self.kept = 0
        self.sentinels = 0
        self.reasons: Counter[str] = Counter()
        self._ids = Ids()
        # Rows that were not yet compared with those before them.
        self._waiting: list[_Row] = []
        self._good: list[dict] = []
        self._bad: list[dict] = []

    def add(self, dataset: Dataset, file: str, index: int, row: Any, format: str) -> None:
        self.seen += 1
        place = {"dataset": dataset.name, "source_file": file, "source_index": index}
        pair: Pair | Reject
        if isinstance(row, Unreadable):
            pair, row = Reject(row.reason), row.text
        else:
            pair = to_pair(row, format, dataset.multi_turn)
        self._waiting.append(_Row(place, pair, sample_id(*pair) if isinstance(pair, Pair) else "", row))
        if len(self._waiting) >= _TOGETHER:
            self.sort()

    def sort(self) -> None:
        """Decide about the rows that wait, in their order."""
        is_new = iter(self._ids.add([row.id for row in self._waiting if row.id]))
        for place, pair, key, row in self._waiting:
            if isinstance(pair, Pair) and next(is_new):
                self.kept += 1
                self.sentinels += pair.input.strip().lower() in SENTINEL_INPUTS
                self._good.append({"sample_id": key, **pair._asdict(), **place})
            else:
                reason = pair.reason if isinstance(pair, Reject) else "duplicate"
                self.reasons[reason] += 1
                # ASCII escapes, so that text no Parquet file can hold is still shown.
                self._bad.append({**place, "reason": reason, "raw": json.dumps(row, default=str)[:2000]})
            if max(len(self._good), len(self._bad)) >= CHUNK:
                self._write()
        self._waiting = []

    def flush(self) -> None:
        """Write all rows that were added."""
        self.sort()
        self._write()

    def _write(self) -> None:
        if self._good:
            self.records.append(self.lake.write_part(RECORDS, self._good))
        if self._bad:
            self.rejects.append(self.lake.write_part(REJECTS, self._bad))
        self._good, self._bad = [], []
