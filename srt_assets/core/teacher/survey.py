"""All pairs of one run of a stage, looked up in the ledger together. Which rows they give is not decided here.

The keys are computed once. A pair is open as long as the ledger may still get a reply that changes its row.
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
    """One candidate row to make: from `source` through the teacher, or, without one, straight to `status`."""

    sample_id: str
    dataset: str
    candidate: str
    source: Source | None
    status: str = "ok"
    texts: tuple[str, str, str] | None = None


class RowsToMake(Protocol):
    """What is to be made."""

    @property
    def together(self) -> int:
        """Rows of the query that belong to one record."""
        ...

    def query(self, lake: Lake) -> str:
        """The records as SQL, in the order of the rows to make. A sort, but no join, which would need more memory."""
        ...

    def subjects(self, *rows: tuple) -> tuple[Subject, ...]:
        """The rows to make of a record, always as many."""
        ...


class Survey:
    """One state of the records, whatever others write meanwhile. Close it.

    `place` is the number of a row among all that are to be made, from 0 in their order.
    """

    def __init__(
        self,
        lake: Lake,
        plan: RowsToMake,
        prompter: Prompter,
        renew: bool = False,
        con: duckdb.DuckDBPyConnection | None = None,
    ) -> None:
        """`renew`: what only an older program asked is not known. `con`: that of a survey which is no longer used, if
        the plan reads tables in it.
        """
        self.con = con or bounded(lake)
        self._plan, self._prompter, self._renew = plan, prompter, renew
        # Read from a table, in its order: a sort or a join that is still being read keeps memory that others need.
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
        """How many steps `missing` gives: pairs with the same call (a blank input) are asked together."""
        return _number(self.con, "SELECT count(DISTINCT call_key) FROM open")

    def all(self) -> Iterator[tuple[int, Subject]]:
        """Every row to make."""
        with self.con.cursor() as cursor:
            records = grouped(cursor.execute("FROM records"), self._plan.together)
            yield from enumerate(subject for rows in records for subject in self._plan.subjects(*rows))

    def settled(self, lookup: Lookup, max_tokens: int | None) -> Iterator[tuple[int, Subject, Step]]:
        """The pairs that need no call any more, in no order; then they are open no longer.

        `max_tokens`: what a reply is allowed now. None settles all: whatever is missing stays so.
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
        """The steps to ask, in order: those of open pairs, as `settled` has left them. Equal calls are asked once."""
        self.con.execute("CREATE OR REPLACE TABLE asked AS SELECT min(place) AS place FROM open GROUP BY call_key")
        for _, _, step in self._corrected(lookup, "asked", api_base):
            yield step

    def _firsts(
        self, lookup: Lookup, which: str = "open", api_base: str | None = None, only_answered: bool = False
    ) -> Iterator[tuple[int, Subject, Step]]:
        """The open pairs whose places are in a table, in order, as far as their first turn goes."""
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
        """The same with the corrections that `settled` has found to be due."""
        with ExitStack() as stack:
            keys, found = self._looked_up(stack, lookup, "corrections", which, api_base)
            for place, subject, step in self._firsts(lookup, which, api_base):
                if key := keys.at(place):
                    step = replace(step, correction=Turn(corrected(self._prompter, step, key), *found.at(place)))
                yield place, subject, step

    def _looked_up(
        self, stack: ExitStack, lookup: Lookup, table: str, which: str, api_base: str | None
    ) -> tuple[ByPlace[str], Found]:
        """The keys of a table's pairs by their places, and what the ledger knows of them."""
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
    """The rows of what was just executed, so many at a time."""
    rows = _rows(cursor)
    return zip(*[rows] * together, strict=True)


def _rows(cursor: duckdb.DuckDBPyConnection) -> Iterator[tuple]:
    while rows := cursor.fetchmany(ROWS):
        yield from rows


def _number(con: duckdb.DuckDBPyConnection, sql: str) -> int:
    row = con.execute(sql).fetchone()
    return int(row[0]) if row else 0
