"""Lists the calls that a run of both reflection assets would make, without sending any. Prices are in `estimate.py`.

In a new project the ledger knows nothing of most records. These records are found by their content keys, which are in
the tables. Their call keys, which are slow to compute, are not needed.
"""

from collections import deque
from collections.abc import Iterator

import duckdb

from srt_assets.core.lake import Lake
from srt_assets.core.teacher import instructions, prompts, responses, stage
from srt_assets.core.teacher.ask import Ask, Room, Turn, must_ask
from srt_assets.core.teacher.call import Call, Prompter, Source
from srt_assets.core.teacher.fill import bounded, fill
from srt_assets.core.teacher.lookup import Lookup
from srt_assets.core.teacher.rows import Rows
from srt_assets.core.teacher.steps import Step
from srt_assets.core.teacher.survey import Subject, Survey, grouped
from srt_assets.settings import Settings

_OF_REFLECTED = "reflect_response_of_reflected"
# A blank input is not shown to the teacher, so several records that differ only in such inputs need the same call.
_BLANK = r"input <> '' AND NOT regexp_matches(input, '[\pL\pN\pP\pS]')"
# Conditions: the ledger may, or cannot, know something of a record, under any settings.
_IS_KNOWN, _IS_NEW = "sample_id IN (FROM known)", "sample_id NOT IN (FROM known)"


class _Some:
    """A plan with another query, which selects some of its records."""

    def __init__(self, plan: stage.Reflection, query: str) -> None:
        self.together, self.subjects, self._query = plan.together, plan.subjects, query

    def query(self, lake: Lake) -> str:
        return self._query


class DryRun:
    """`older`: count of replies to prompts of an older program that are used; complete when `calls` has ended."""

    def __init__(self, settings: Settings, lake: Lake, lookup: Lookup, room: Room) -> None:
        """`room` must estimate tokens without waiting for a server."""
        self.older = 0
        self._settings, self._lake, self._lookup, self._room = settings, lake, lookup, room
        self._teacher = settings.teacher
        self._prompter = Prompter(self._teacher)

    def calls(self) -> Iterator[tuple[str, Call]]:
        """Purpose and call. For instructions that are not reflected yet, the call about the original's texts."""
        lake = self._lake
        stage.upstream_hash(lake, "raw_records", None, "raw_dataset")
        records_made = self._is_made(instructions.STAGE)
        if records_made and self._is_made(responses.STAGE):
            return
        with bounded(lake) as con:
            before = self._lookup.asked_before()
            con.execute("CREATE TABLE asked_before (source_key VARCHAR, purpose VARCHAR)")
            fill(con, "asked_before", before)
            raw = lake.source("raw_records")
            con.execute(f"CREATE TABLE blank AS SELECT hash(instruction, response) FROM {raw} WHERE {_BLANK}")
            con.execute(
                f"CREATE TABLE known AS SELECT sample_id FROM {raw} WHERE hash(instruction, response) IN (FROM blank) "
                # The key of a record's texts is its id.
                "UNION SELECT source_key FROM asked_before WHERE purpose IN ('reflect_instruction', 'reflect_response')"
            )
            if before["source_key"].null_count:  # rows of the oldest programs do not name their record's texts
                con.execute(f"INSERT INTO known SELECT sample_id FROM {raw}")
            if records_made:
                rows = lake.source(stage.TABLE, instructions.PARTITION)
            else:
                yield from self._records(con)
                rows = "rows"
            con.execute(
                f"INSERT INTO known SELECT sample_id FROM {rows} WHERE content_key IN "
                f"(SELECT source_key FROM asked_before WHERE purpose = '{_OF_REFLECTED}')"
            )
            yield from self._answers(con, rows)

    def _records(self, con: duckdb.DuckDBPyConnection) -> Iterator[tuple[str, Call]]:
        """The calls about instructions, and all calls about responses of records that the ledger does not know.

        Afterwards the table `rows` holds the known records.
        """
        plan, lake = instructions.STAGE, self._lake
        for subject in self._new(con, plan, plan.query(lake, _IS_NEW)):
            source = subject.source
            if source is None:
                continue
            if call := self._needed(source):
                yield source.purpose, call
                yield _OF_REFLECTED, self._call(source, _OF_REFLECTED)
            given = Source(source.sample_id, "reflect_response", *source.texts)
            if call := self._needed(given):
                yield given.purpose, call
        survey = Survey(lake, _Some(plan, plan.query(lake, _IS_KNOWN)), self._prompter, con=con)
        rows = Rows(survey, self._prompter)
        deque(rows.take(self._settled(survey, self._teacher.max_tokens)), maxlen=0)
        for source, call in self._missing(survey):
            yield source.purpose, call
            yield _OF_REFLECTED, self._call(source, _OF_REFLECTED)
        deque(rows.take(survey.settled(self._lookup, None)), maxlen=0)
        rows.flush()

    def _answers(self, con: duckdb.DuckDBPyConnection, rows: str) -> Iterator[tuple[str, Call]]:
        plan = responses.STAGE
        for subject in self._new(con, plan, responses.query_of(rows, _IS_NEW)):
            if subject.source and (call := self._needed(subject.source)):
                yield subject.source.purpose, call
        known = _Some(plan, responses.query_of(rows, _IS_KNOWN))
        survey = Survey(self._lake, known, self._prompter, con=con)
        deque(self._settled(survey, self._teacher.max_tokens), maxlen=0)
        yield from ((source.purpose, call) for source, call in self._missing(survey))

    def _new(self, con: duckdb.DuckDBPyConnection, plan: stage.Reflection, query: str) -> Iterator[Subject]:
        with con.cursor() as cursor:
            for rows in grouped(cursor.execute(query), plan.together):
                yield from plan.subjects(*rows)

    def _is_made(self, plan: stage.Reflection) -> bool:
        """Whether the asset is up to date. If so, counts its replies to older prompts."""
        made = plan.right(self._lake, "", plan.wanted(self._settings, self._lake))
        if made:
            version = self._prompter.facts["prompt_version"]
            self.older += self._lookup.older_replies(self._lake.source(stage.TABLE, plan.share), version)
        return made is not None

    def _call(self, source: Source, purpose: str) -> Call:
        """A call without a key."""
        shown = Source(source.sample_id, purpose, *source.texts)
        messages = prompts.messages(shown.kind, self._prompter.form, *shown.texts, brief=self._prompter.local)
        return Call("", source.sample_id, purpose, messages, None, {})

    def _needed(self, source: Source) -> Call | None:
        """The call for a new pair; None if it is too long."""
        call = self._call(source, source.purpose)
        return call if self._is_asked(Turn(call)) else None

    def _is_asked(self, turn: Turn) -> bool:
        return isinstance(must_ask(turn, _at_once(self._room, turn.call), self._teacher.max_attempts), Ask)

    def _settled(self, survey: Survey, max_tokens: int) -> Iterator[tuple[int, Subject, Step]]:
        for place, subject, step in survey.settled(self._lookup, max_tokens):
            self.older += sum(turn.is_older for turn in step.turns)
            yield place, subject, step

    def _missing(self, survey: Survey) -> Iterator[tuple[Source, Call]]:
        for step in survey.missing(self._lookup, self._teacher.api_base):
            turn = step.missing(self._teacher.max_tokens)
            assert turn is not None
            self.older += sum(other.is_older for other in step.turns if other is not turn)
            if self._is_asked(turn):
                yield step.source, turn.call


def _at_once(room: Room, call: Call) -> int | None:
    """`room.allowance(call)` without an event loop, which would be the slowest part. The room must not wait."""
    try:
        room.allowance(call).send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a room without a teacher waits for nothing")
