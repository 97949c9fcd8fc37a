"""The state of each pair given the ledger: which call it needs next, correction turns included."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from srt_assets.core.teacher import ends
from srt_assets.core.teacher.ask import Turn, Verdict
from srt_assets.core.teacher.call import Call, Prompter, Source
from srt_assets.core.teacher.known import WANTED, Reply
from srt_assets.core.teacher.lookup import Lookup
from srt_assets.core.teacher.parse import CORRECTABLE, Parsed, parse


@dataclass(frozen=True)
class Step:
    """The state of one pair: its first turn, the parsed reply, and the correction turn if one is needed."""

    source: Source
    first: Turn
    parsed: Parsed | None = None
    correction: Turn | None = None

    @property
    def needs_correction(self) -> bool:
        """Whether the reply could not be parsed and a correction turn may help."""
        return self.parsed is not None and self.parsed.status in CORRECTABLE

    @property
    def turns(self) -> list[Turn]:
        return [self.first, self.correction] if self.correction else [self.first]

    @property
    def decisive(self) -> Reply | None:
        """The reply that the row is made from: that of the correction turn if there is one."""
        return next((turn.reply for turn in reversed(self.turns) if turn.reply), None)

    def missing(self, max_tokens: int) -> Turn | None:
        """The turn to ask next; None if none. Whether it is sent depends on its tokens too (`ask.must_ask`)."""
        return next((turn for turn in self.turns if not (turn.reply and turn.reply.serves(max_tokens))), None)

    def result(self, prompter: Prompter, unanswered: Mapping[str, Verdict]) -> tuple[Parsed, str]:
        """The parsed result and the key of the call that it comes from."""
        key = self.first.call.key
        verdict = unanswered.get(key)
        if self.first.reply is None or self.parsed is None:
            return Parsed(verdict or "call_failed"), key
        if self.parsed.status == "truncated_reply" and verdict == "over_budget":
            return Parsed("over_budget"), key
        key = self.first.reply.key
        if self.correction is None:
            return self.parsed, key
        if self.correction.reply:
            return read(self.source, prompter, self.correction.reply), self.correction.reply.key
        over_budget = unanswered.get(self.correction.call.key) == "over_budget"
        return Parsed("over_budget" if over_budget else self.parsed.status), key


def resolve(lookup: Lookup, prompter: Prompter, sources: list[Source], api_base: str | None = None) -> list[Step]:
    """The steps of a few pairs; without `api_base`, failed attempts are left out. For many pairs, see `survey`.

    Replies to calls of an older program count.
    """
    firsts = _turns(lookup, prompter, [prompter.call(source) for source in sources], api_base)
    steps = [
        Step(source, turn, read(source, prompter, turn.reply) if turn.reply else None)
        for source, turn in zip(sources, firsts, strict=True)
    ]
    due = [place for place, step in enumerate(steps) if step.needs_correction]
    turns = _turns(lookup, prompter, [corrected(prompter, steps[place]) for place in due], api_base)
    for place, turn in zip(due, turns, strict=True):
        steps[place] = replace(steps[place], correction=turn)
    return steps


def corrected(prompter: Prompter, step: Step, key: str = "") -> Call:
    """The correction turn's call, for a step that needs one. `key`: its key, if already computed."""
    reply, parsed = step.first.reply, step.parsed
    assert reply is not None and parsed is not None
    return prompter.correction(step.source, step.first.call, reply.text or "", parsed.status, key)


def read(source: Source, prompter: Prompter, reply: Reply) -> Parsed:
    """Parse a reply of the ledger under these settings."""
    end = ends.judged(reply.finish_reason, reply.native_finish_reason, prompter.good_finish_reasons)
    of_older = reply.native_finish_reason is None
    return parse(source.kind, prompter.form, reply.text, end, source.texts, of_older)


def wanted_row(place: int, call: Call) -> dict[str, Any]:
    """A call as a row of `known.WANTED`, to be looked up."""
    return {"place": place, "call_key": call.key, "source_key": call.facts["source_key"], "purpose": call.purpose}


def _turns(lookup: Lookup, prompter: Prompter, calls: list[Call], api_base: str | None) -> list[Turn]:
    wanted = pa.Table.from_pylist([wanted_row(place, call) for place, call in enumerate(calls)], schema=WANTED)
    with lookup.look_up(wanted, prompter.facts, api_base) as found:
        return [Turn(call, *found.at(place)) for place, call in enumerate(calls)]
