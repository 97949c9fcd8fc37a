"""Both assets without asking anybody: the calls that a run would make. What they cost is not said here.

Of most records of a project that begins the ledger knows nothing. They are told apart by their content keys, which the
tables hold, and need no key of a call: that is most of the time.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import duckdb

from srt_assets.core.lake import Lake
from srt_assets.core.teacher import instructions, prompts, responses, stage
from srt_assets.core.teacher.ask import Ask, Room, Turn, must_ask
from srt_assets.core.teacher.call import Call, Prompter, Source
from srt_assets.core.teacher.fill import ROWS, bounded, fill
from srt_assets.core.teacher.lookup import Lookup
from srt_assets.core.teacher.rows import Rows
from srt_assets.core.teacher.steps import Step
from srt_assets.core.teacher.survey import Subject, Survey
from srt_assets.settings import Settings

_OF_REFLECTED = "reflect_response_of_reflected"
# An input of blanks is shown to nobody: such a record, and others like it, may need the same call.
_BLANK = r"input <> '' AND NOT regexp_matches(input, '[\pL\pN\pP\pS]')"
_LIKE_BLANK = "hash(instruction, response) IN (FROM blank)"
_ASKED = "IN (SELECT source_key FROM asked_before WHERE purpose = '{}')"
_KNOWN_RECORDS = " OR ".join(f"sample_id {_ASKED.format(p)}" for p in ("reflect_instruction", "reflect_response"))
_KNOWN_ANSWERS = f"sample_id {_ASKED.format('reflect_response')} OR content_key {_ASKED.format(_OF_REFLECTED)}"


@dataclass(frozen=True)
class _Some:
    """Those records of a query for which a condition holds."""

    plan: stage.Reflection
    of: str
    where: str

    def query(self, lake: Lake) -> str:
        return f"FROM ({self.of}) WHERE {self.where}"

    def subjects(self, record: tuple) -> tuple[Subject, ...]:
        return self.plan.subjects(record)


class DryRun:
    """`older`: replies that serve although an older program asked for them; right when `calls` has ended."""

    def __init__(self, settings: Settings, lake: Lake, lookup: Lookup, room: Room) -> None:
        """`room` must not have to wait: it guesses."""
        self.older = 0
        self._settings, self._lake, self._lookup, self._room = settings, lake, lookup, room
        self._teacher = settings.teacher
        self._prompter = Prompter(self._teacher)

    def calls(self) -> Iterator[tuple[str, Call]]:
        """Purpose and call; of those about instructions that are still to come, the call about the original's texts."""
        lake = self._lake
        stage.upstream_hash(lake, "raw_records", None, "raw_dataset")
        records_made = self._is_made(instructions.STAGE)
        if records_made and self._is_made(responses.STAGE):
            return
        with bounded(lake) as con:
            before = self._lookup.asked_before()
            con.execute("CREATE TABLE asked_before (source_key VARCHAR, purpose VARCHAR)")
            fill(con, "asked_before", before)
            # The oldest rows do not say what they are about.
            known = "true OR " if before["source_key"].null_count else ""
            of = f"SELECT hash(instruction, response) FROM {lake.source('raw_records')} WHERE {_BLANK}"
            con.execute(f"CREATE TABLE blank AS {of}")
            if records_made:
                query = responses.STAGE.query(lake)
            else:
                query = instructions.STAGE.query(lake)
                yield from self._records(con, query, f"{known}{_LIKE_BLANK} OR {_KNOWN_RECORDS}")
                query = responses.query_of("rows")
            yield from self._answers(con, query, f"{known}{_LIKE_BLANK} OR {_KNOWN_ANSWERS}")

    def _records(self, con: duckdb.DuckDBPyConnection, query: str, known: str) -> Iterator[tuple[str, Call]]:
        """The calls about records, and those about answers of records of which nothing is known. What is known of the
        others is then in the table `rows`.
        """
        for record in self._new(con, query, known):
            source = Source(record[0], "reflect_instruction", *record[2:])
            if call := self._needed(source):
                yield source.purpose, call
                yield _OF_REFLECTED, self._call(source, _OF_REFLECTED)
            given = Source(source.sample_id, "reflect_response", *source.texts)
            if call := self._needed(given):
                yield given.purpose, call
        survey = Survey(self._lake, _Some(instructions.STAGE, query, known), self._prompter, con=con)
        rows = Rows(survey, self._prompter)
        deque(rows.take(self._settled(survey, self._teacher.max_tokens)), maxlen=0)
        for source, call in self._missing(survey):
            yield source.purpose, call
            yield _OF_REFLECTED, self._call(source, _OF_REFLECTED)
        deque(rows.take(survey.settled(self._lookup, None)), maxlen=0)
        rows.flush()

    def _answers(self, con: duckdb.DuckDBPyConnection, query: str, known: str) -> Iterator[tuple[str, Call]]:
        for record in self._new(con, query, known):
            for subject in responses.STAGE.subjects(record):
                if subject.source and (call := self._needed(subject.source)):
                    yield subject.source.purpose, call
        survey = Survey(self._lake, _Some(responses.STAGE, query, known), self._prompter, con=con)
        deque(self._settled(survey, self._teacher.max_tokens), maxlen=0)
        yield from ((source.purpose, call) for source, call in self._missing(survey))

    def _is_made(self, plan: stage.Reflection) -> bool:
        """A run would leave the asset as it is. Its replies to older prompts are counted."""
        made = plan.right(self._lake, "", plan.wanted(self._settings, self._lake))
        if made:
            version = self._prompter.facts["prompt_version"]
            self.older += self._lookup.older_replies(self._lake.source(stage.TABLE, plan.share), version)
        return made is not None

    def _new(self, con: duckdb.DuckDBPyConnection, query: str, known: str) -> Iterator[tuple]:
        """The records of which the ledger knows nothing, whatever the settings were."""
        with con.cursor() as cursor:
            cursor.execute(f"FROM ({query}) WHERE ({known}) IS NOT true")
            while records := cursor.fetchmany(ROWS):
                yield from records

    def _call(self, source: Source, purpose: str) -> Call:
        """A call without a key."""
        shown = Source(source.sample_id, purpose, *source.texts)
        messages = prompts.messages(shown.kind, self._prompter.form, *shown.texts, brief=self._prompter.local)
        return Call("", source.sample_id, purpose, messages, None, {})

    def _needed(self, source: Source) -> Call | None:
        """The call about a new pair, unless it is too long."""
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
    """The allowance in a room that only guesses, and so never waits: an event loop would take longer than all else."""
    try:
        room.allowance(call).send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a room without a teacher waits for nothing")
