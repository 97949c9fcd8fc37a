"""The stage of the asset `raw_dataset`: every row of the settings' files becomes a record or a reject.

Files are read in `files`, rows are interpreted in `forms`, and tables are written in `writer.py`.
"""

import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from srt_assets.core.errors import UserError
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.outcome import Description, Made
from srt_assets.core.progress import Progress
from srt_assets.core.records.files import hub, inputs
from srt_assets.core.records.files.find import dataset_files
from srt_assets.core.records.files.read import Opener, sources
from srt_assets.core.records.files.unreadable import within
from srt_assets.core.records.forms.meaning import read_rows as meanings
from srt_assets.core.records.forms.result import REASONS, Read
from srt_assets.core.records.forms.rules import Rules
from srt_assets.core.records.writer import ALTERNATIVES, FIELDS, RECORDS, REJECTS, Tally, Writer
from srt_assets.core.stage import Stage, Work
from srt_assets.core.tables import rows_as_dicts
from srt_assets.settings import Dataset, Settings

# Settings of a dataset that change what its rows mean. A manifest stores those that differ from their default.
_RULES = frozenset({"columns", "roles", "role_key", "text_key", "unwrap", "delimiter"})

# Reject reasons that naming the columns may solve.
_OF_FORM = {"unknown_form", "no_structure", "missing_instruction", "missing_response", "wrong_type", "ambiguous_form"}

log = logging.getLogger(__name__)


class RawDataset(Stage):
    """Instruction-response pairs from the settings' files, with content ids; other rows are rejected with a reason."""

    asset = "raw_dataset"
    # Rejects are committed first, so that a reader of the new records finds the new rejects too.
    tables = (RECORDS, REJECTS, ALTERNATIVES, FIELDS)
    # Raise it when the same files give other rows. Then `srt run`, typed by a person, reads them again.
    version = "2"
    waits_for_person = True
    group = "raw"
    kinds = frozenset({"parquet"})

    def wanted(self, settings: Settings, lake: Lake, student: str = "") -> Fingerprint:
        """The hashes of the settings' files, and the settings that say how to read them."""
        if not settings.datasets:
            raise UserError("no dataset in the settings", "add a [[datasets]] block with name and path to srt.toml")
        facts = []
        known = read_before(lake) if any(dataset.hf for dataset in settings.datasets) else {}
        paths = [dataset_files(dataset) if dataset.path else [] for dataset in settings.datasets]
        sums = inputs.sums(lake.home, chain(*paths))
        for dataset, of_it in zip(settings.datasets, paths, strict=True):
            rules = dataset.model_dump(include={"name", "format", "limit", "multi_turn"})
            rules |= dataset.model_dump(mode="json", include=set(_RULES), exclude_defaults=True)
            if dataset.path:
                rules["files"] = [sums[path] for path in of_it]
            else:
                rules["hub"] = hub.facts(dataset, known)
            facts.append(rules)
        return Fingerprint.of(stage=RECORDS, version=self.version, datasets=facts)

    def make(self, work: Work) -> Made:
        """Read all datasets. UserError names the file and line that cannot be read, a column of the settings that no
        row has, or why there is no record at all. StageError names a file that changed.
        """
        writer = Writer(work.lake)
        paths = [_files(*each) for each in zip(work.settings.datasets, work.want.facts["datasets"], strict=True)]
        reading = inputs.Reading(work.lake.home, {path: one for of_it in paths for path, one in of_it.items()})
        for dataset, of_it, facts in zip(work.settings.datasets, paths, work.want.facts["datasets"], strict=True):
            read_into(writer, dataset, of_it, reading, work.progress, hub.commit_in(facts.get("hub")))
        reading.check()
        if not any(tally.records for tally in writer.tallies):
            if work.lake.manifest(RECORDS) is None:  # rejects may be inspected; beside older records they would mislead
                writer.flush()
                for table in (FIELDS, ALTERNATIVES, REJECTS):
                    work.lake.commit(table, writer.parts[table], fingerprint=work.want, code_version=self.version)
            raise _nothing_read(writer.tallies)
        writer.flush()
        work.progress(writer.seen, writer.seen, "rows")
        for tally in writer.tallies:
            tally.say()
        if writer.sentinels:
            log.warning("%d records have an input such as '<noinput>'; they are kept as they are", writer.sentinels)
        return Made(writer.parts, _stats(writer))

    def describe(self, lake: Lake, student: str = "") -> Description:
        """Counts by reason, unread fields, response lengths in characters, five records."""
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
            unread = rows_as_dicts(
                con.execute(
                    "SELECT dataset, field, n_rows, type FROM raw_fields WHERE becomes = 'unread' "
                    "ORDER BY n_rows DESC, dataset, field LIMIT 50"
                )
            )
            lengths = con.execute("SELECT length(response)::DOUBLE FROM raw_records USING SAMPLE 20000 ROWS").fetchall()
        numbers |= {f"rejected_{reason}": n for reason, n in reasons}
        histogram = ("response length (characters)", [n for (n,) in lengths])
        return Description(numbers, sample, histogram, tables={"fields_unread": unread} if unread else {})


STAGE = RawDataset()


def read_before(lake: Lake) -> dict[str, Any]:
    """The facts of the datasets that the home's records were made from, by dataset name."""
    made = lake.manifest(RECORDS)
    return {one["name"]: one for one in (made.inputs if made else {}).get("datasets", ())}


def read_into(
    writer: Writer,
    dataset: Dataset,
    paths: Iterable[Path],
    reading: inputs.Reading,
    progress: Progress,
    commit: str = "",
) -> None:
    """Read one dataset, of the hub at this commit. UserError if the settings name a column that no row has."""
    rules = Rules.of(dataset)
    tally = writer.begin(dataset.name, {name for name in (*rules.columns.values(), rules.unwrap) if name})
    for file, index, row, read in rows_of(dataset, rules, paths, reading.opened, commit):
        writer.add(file, index, row, read)
        if tally.waiting and isinstance(row, dict) and isinstance(inner := row.get(rules.unwrap), dict):
            tally.waiting.difference_update(inner)
        if writer.seen % 1000 == 0:
            progress(writer.seen, 0, "rows")
    writer.end()
    if tally.waiting and tally.rows:
        missing = ", ".join(sorted(map(repr, tally.waiting)))
        raise UserError(
            f"dataset {dataset.name!r}: no row has the column {missing}, which the settings name",
            f"correct it: {tally.names()}",
        )


def _nothing_read(tallies: list[Tally]) -> UserError:
    """The error of a run without a record: what was read instead, and what a person can set."""
    told = [
        f"dataset {tally.name!r} gives no record: {tally.lost()}; {tally.names()}"
        if tally.rows
        else f"dataset {tally.name!r} has no rows"
        for tally in tallies
    ]
    reasons: Counter[str] = sum((tally.reasons for tally in tallies), Counter())
    why = {reason for reason, _ in reasons.most_common(3)}
    remedies = [f"{reason}: {REASONS[reason]}" for reason in REASONS if reason in why]
    if not why:
        return UserError("; ".join(told), "look into the files that datasets.path names")
    if why & _OF_FORM:
        remedies.append('for columns of other names: columns = { instruction = "…", response = "…" } in srt.toml')
    return UserError("; ".join(told), "; ".join([*remedies, "docs/data.md has the forms that are known"]))


def _stats(writer: Writer) -> dict[str, int | float | str]:
    """Counts for the manifest. Counts of zero are left out, except `rows_read`."""
    reasons: Counter[str] = sum((tally.reasons for tally in writer.tallies), Counter())
    forms: Counter[str] = sum((tally.forms for tally in writer.tallies), Counter())
    unread = {name for tally in writer.tallies for name, _ in tally.named("unread")}
    counts = {
        "sentinel_inputs": writer.sentinels,
        "alternatives": sum(tally.alternatives for tally in writer.tallies),
        "numbers_as_text": sum(tally.numbers for tally in writer.tallies),
        "fields_unread": len(unread),
    }
    return {
        "rows_read": writer.seen,
        **{f"rejected_{reason}": n for reason, n in sorted(reasons.items())},
        **{f"form_{form}": n for form, n in sorted(forms.items())},
        **{name: n for name, n in counts.items() if n},
    }


def _files(dataset: Dataset, rules: Mapping[str, Any]) -> dict[Path, str]:
    """The files of a dataset with their expected sums. StageError if the number of files has changed."""
    paths = dataset_files(dataset) if dataset.path else []
    if len(paths) != len(rules.get("files", ())):
        raise inputs.changed(dataset.path)
    return dict(zip(paths, rules.get("files", ()), strict=True))


def rows_of(
    dataset: Dataset, rules: Rules, paths: Iterable[Path], opened: Opener, commit: str = ""
) -> Iterator[tuple[str, int, Any, Read]]:
    """Every row of a dataset: its file, its index there (from 0), the row, and its result.

    `commit`: the commit of a hub dataset.
    """
    left = dataset.limit or sys.maxsize
    for name, rows in sources(dataset, paths, opened, commit):
        given = 0
        for index, row, read in meanings(within(dataset.max_bad_share, name, islice(rows, left)), rules):
            given += 1
            yield name, index, row, read
        left -= given
        if left <= 0:
            return
