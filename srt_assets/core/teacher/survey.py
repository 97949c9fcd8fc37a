"""Looks up all pairs of one run of a stage in the ledger together. Making rows from them is in `rows.py`.

The call keys are computed once. A pair is open while a further reply can still change its row.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

import duckdb
import pyarrow as pa

from srt_assets.core.lake import Lake
from srt_assets.core.teacher.ask import Turn
from srt_assets.core.teacher.call import Prompter, Source
from srt_assets.core.teacher.fill import ROWS, Filler, bounded
from srt_assets.core.teacher.known import WANTED, ByPlace, Found
from srt_assets.core.teacher.lookup import Lookup
from srt_assets.core.teacher.steps import Step, corrected, read, wanted_row


@dataclass(frozen=True, slots=True)
class Subject:
    """One candidate row to make: from the reply to the call about `source`, or without a source directly."""

    sample_id: str
    dataset: str
    candidate: str
    source: Source | None
    status: str = "ok"
    texts: tuple[str, str, str] | None = None


class RowsToMake(Protocol):
    """The rows to make, and the query for their records."""

    @property
    def together(self) -> int:
        """Rows of the query that belong to one record."""
        ...

    def query(self, lake: Lake) -> str:
        """SQL for the records, in the order of the rows to make. No join, which would need more memory than a sort."""
        ...

    def subjects(self, *rows: tuple) -> tuple[Subject, ...]:
        """The rows to make from a record; their number is the same for every record."""
        ...


class Survey:
    """A snapshot of the records, independent of later writes. Use it in a `with` block.

    `place` is the 0-based position of a row among all rows to make.
    """

    def __init__(
        self,
        lake: Lake,
        plan: RowsToMake,
        prompter: Prompter,
        renew: bool = False,
        con: duckdb.DuckDBPyConnection | None = None,
    ) -> None:
        """`renew`: ignore replies to calls of an older program. `con`: an existing connection, for a plan that reads
        tables in it; an earlier survey of that connection must no longer be used.
        """
        self.con = con or bounded(lake)
        self._plan, self._prompter, self._renew = plan, prompter, renew
        # Stored in a table first: a sort or join that is read slowly holds memory that other queries need.
        self.con.execute(f"CREATE OR REPLACE TABLE records AS {plan.query(lake)}")
        for name in ("open", "corrections"):
            columns = "place BIGINT, call_key VARCHAR, source_key VARCHAR, purpose VARCHAR"
            self.con.execute(f"CREATE OR REPLACE TABLE {name} ({columns})")
        with Filler(self.con, "open", WANTED) as keys:
            for place, subject in self.all():
                if subject.source:
                    keys.add(wanted_row(place, prompter.call(subject.source)))
        self.pairs = self.open

    def __enter__(self) -> "Survey":
        return self

    def __exit__(self, *_: object) -> None:
        self.con.close()

    @property
    def open(self) -> int:
        """How many pairs are open."""
        return _number(self.con, "SELECT count(*) FROM open")

    @property
    def askable(self) -> int:
        """Number of steps that `missing` yields. Pairs with the same call (because of a blank input) count once."""
        return _number(self.con, "SELECT count(DISTINCT call_key) FROM open")

    def all(self) -> Iterator[tuple[int, Subject]]:
        """Every row to make."""
        with self.con.cursor() as cursor:
            records = grouped(cursor.execute("FROM records"), self._plan.together)
            yield from enumerate(subject for rows in records for subject in self._plan.subjects(*rows))

    def settled(self, lookup: Lookup, max_tokens: int | None) -> Iterator[tuple[int, Subject, Step]]:
        """Yield the pairs that need no further call, in any order, and close them.

        `max_tokens`: tokens allowed for a reply. None settles all pairs, also those with missing replies.
        """
        with ExitStack() as stack:
            gone = stack.enter_context(self._scratch("gone"))
            self.con.execute("DELETE FROM corrections")
            with Filler(self.con, "corrections", WANTED) as corrections:
                for place, subject, step in self._firsts(lookup, only_answered=max_tokens is not None):
                    if step.needs_correction:
                        corrections.add(wanted_row(place, corrected(self._prompter, step)))
                    elif max_tokens is None or not step.missing(max_tokens):
                        gone.add({"place": place})
                        yield place, subject, step
            for place, subject, step in self._corrected(lookup, "corrections", None):
                if max_tokens is None or not step.missing(max_tokens):
                    gone.add({"place": place})
                    yield place, subject, step
        for table in ("open", "corrections"):
            self.con.execute(f"CREATE OR REPLACE TABLE {table} AS FROM {table} ANTI JOIN gone USING (place)")
        self.con.execute("DROP TABLE gone")

    def missing(self, lookup: Lookup, api_base: str) -> Iterator[Step]:
        """The steps of the pairs that are open after `settled`, in order. Equal calls are yielded once."""
        self.con.execute("CREATE OR REPLACE TABLE asked AS SELECT min(place) AS place FROM open GROUP BY call_key")
        for _, _, step in self._corrected(lookup, "asked", api_base):
            yield step

    def _firsts(
        self, lookup: Lookup, which: str = "open", api_base: str | None = None, only_answered: bool = False
    ) -> Iterator[tuple[int, Subject, Step]]:
        """The open pairs whose places are in the table `which`, in order, with their first turn only."""
        if not _number(self.con, f"SELECT count(*) FROM {which}"):
            return
        with ExitStack() as stack:
            keys, found = self._looked_up(stack, lookup, "open", which, api_base)
            for place, subject in self.all():
                if subject.source is None or (key := keys.at(place)) is None:
                    continue
                known = found.at(place)
                if only_answered and known.reply is None:
                    continue
                first = Turn(self._prompter.call(subject.source, key), *known)
                parsed = read(subject.source, self._prompter, known.reply) if known.reply else None
                yield place, subject, Step(subject.source, first, parsed)

    def _corrected(self, lookup: Lookup, which: str, api_base: str | None) -> Iterator[tuple[int, Subject, Step]]:
        """Like `_firsts`, with the correction turns that `settled` found to be needed."""
        with ExitStack() as stack:
            keys, found = self._looked_up(stack, lookup, "corrections", which, api_base)
            for place, subject, step in self._firsts(lookup, which, api_base):
                if key := keys.at(place):
                    step = replace(step, correction=Turn(corrected(self._prompter, step, key), *found.at(place)))
                yield place, subject, step

    def _looked_up(
        self, stack: ExitStack, lookup: Lookup, table: str, which: str, api_base: str | None
    ) -> tuple[ByPlace[str], Found]:
        """The keys of the pairs in `table` with places in `which`, and what the ledger knows of them."""
        name = f"{table}_{which}"
        chosen = f"SELECT * FROM {table} WHERE place IN (SELECT place FROM {which}) ORDER BY place"
        self.con.execute(f"CREATE OR REPLACE TABLE {name} AS {chosen}")
        cursor = stack.enter_context(self.con.cursor())
        wanted = cursor.execute(f"FROM {name}").to_arrow_reader(ROWS)
        facts = None if self._renew else self._prompter.facts
        found = stack.enter_context(lookup.look_up(wanted, facts, api_base))
        return ByPlace(_rows(cursor.execute(f"SELECT place, call_key FROM {name}"))), found

    def _scratch(self, name: str) -> Filler:
        self.con.execute(f"CREATE OR REPLACE TABLE {name} (place BIGINT)")
        return Filler(self.con, name, pa.schema([("place", pa.int64())]))


def grouped(cursor: duckdb.DuckDBPyConnection, together: int) -> Iterator[tuple[tuple, ...]]:
    """The rows of the last executed query, in groups of `together`."""
    rows = _rows(cursor)
    return zip(*[rows] * together, strict=True)


def _rows(cursor: duckdb.DuckDBPyConnection) -> Iterator[tuple]:
    while rows := cursor.fetchmany(ROWS):
        yield from rows


def _number(con: duckdb.DuckDBPyConnection, sql: str) -> int:
    row = con.execute(sql).fetchone()
    return int(row[0]) if row else 0
