"""How far each pair is: which call it needs next, given what the ledger holds. Correction turns included."""

import math
from dataclasses import dataclass, replace
from itertools import chain

from srt_assets.core.teacher import ends
from srt_assets.core.teacher.ask import Turn, Verdict
from srt_assets.core.teacher.call import Call, Prompter, Source
from srt_assets.core.teacher.lookup import Attempts, Lookup, Reply
from srt_assets.core.teacher.parse import CORRECTABLE, Parsed, parse


@dataclass(frozen=True)
class Step:
    """How far one pair is: its first turn, what the reply is worth, the correction turn if one is due."""

    source: Source
    first: Turn
    parsed: Parsed | None = None
    correction: Turn | None = None

    @property
    def turns(self) -> list[Turn]:
        return [self.first, self.correction] if self.correction else [self.first]

    @property
    def decisive(self) -> Reply | None:
        """The reply that decides: the correction's, if there is one."""
        return next((turn.reply for turn in reversed(self.turns) if turn.reply), None)

    def missing(self, max_tokens: int) -> Turn | None:
        """The turn to ask next, as far as can be told before the request's tokens are counted (see `ask.must_ask`)."""
        return next((turn for turn in self.turns if not (turn.reply and turn.reply.serves(max_tokens))), None)

    def result(self, prompter: Prompter, unanswered: dict[str, Verdict]) -> tuple[Parsed, str]:
        """The outcome and the key of the call that decided it."""
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


def resolve(
    lookup: Lookup, prompter: Prompter, sources: list[Source], api_base: str | None = None, renew: bool = False
) -> list[Step]:
    """What the ledger already knows about these pairs; without `api_base`, nothing of failed tries.

    What an older program asked counts as asked, unless `renew`.
    """
    firsts = _turns(lookup, [prompter.call(source) for source in sources], api_base, renew)
    steps = [
        Step(source, turn, read(source, prompter, turn.reply) if turn.reply else None)
        for source, turn in zip(sources, firsts, strict=True)
    ]
    corrections = {
        place: prompter.correction(step.source, step.first.call, step.first.reply.text or "", step.parsed.status)
        for place, step in enumerate(steps)
        if step.first.reply and step.parsed and step.parsed.status in CORRECTABLE
    }
    for place, turn in zip(corrections, _turns(lookup, list(corrections.values()), api_base, renew), strict=True):
        steps[place] = replace(steps[place], correction=turn)
    return steps


def read(source: Source, prompter: Prompter, reply: Reply) -> Parsed:
    """What a reply of the ledger is worth under these settings."""
    end = ends.judged(reply.finish_reason, reply.native_finish_reason, prompter.good_finish_reasons)
    of_older = reply.native_finish_reason is None
    return parse(source.kind, prompter.form, reply.text, end, source.texts, of_older)


def _turns(lookup: Lookup, calls: list[Call], api_base: str | None, renew: bool) -> list[Turn]:
    """Each call with its reply, else the best one to an older program's call of the same question, and failed tries.

    An upgrade alone must not cause a paid call, and trying again what was given up is one if it succeeds.
    """
    if not calls:
        return []
    replies = lookup.replies(call.key for call in calls)
    unasked = [call for call in calls if call.key not in replies]
    older = lookup.older(unasked) if unasked and not renew else {}
    theirs = lookup.replies(chain(*older.values())) if older else {}
    for key, keys in older.items():
        if found := [theirs[k] for k in keys if k in theirs]:
            replies[key] = max(found, key=lambda reply: reply.max_tokens if reply.is_cut else math.inf)
    unfinished = [c.key for c in calls if c.key not in replies or replies[c.key].is_cut]
    tried: dict[str, dict[int, Attempts]] = {}
    if unfinished and api_base is not None:
        tried = lookup.attempts(chain(unfinished, *older.values()), api_base)
    for key, keys in older.items():
        for allowed, more in chain(*(tried.get(k, {}).items() for k in keys)):
            before = tried.setdefault(key, {}).get(allowed)
            tried[key][allowed] = before.plus(more) if before else more
    return [Turn(call, replies.get(call.key), tried.get(call.key, {})) for call in calls]
