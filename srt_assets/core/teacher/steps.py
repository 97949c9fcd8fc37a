"""How far each pair is: which call it needs next, given what the ledger holds. Correction turns included."""

from dataclasses import dataclass, field

from srt_assets.core.teacher.call import Call, Prompter, Source
from srt_assets.core.teacher.engine import Verdict
from srt_assets.core.teacher.lookup import Attempts, Lookup, Reply
from srt_assets.core.teacher.parse import CORRECTABLE, Parsed, parse
from srt_assets.core.teacher.prompts import Form


@dataclass(frozen=True)
class Step:
    """How far one subject is: the call, its reply, the correction turn if one is due, its reply; what was tried."""

    source: Source
    call: Call
    reply: Reply | None
    parsed: Parsed | None = None
    correction: Call | None = None
    correction_reply: Reply | None = None
    tried: dict[tuple[str, int], Attempts] = field(default_factory=dict)

    def missing(self, max_tokens: int) -> Call | None:
        if self.reply is None or not self.reply.serves(max_tokens):
            return self.call
        if self.correction and (self.correction_reply is None or not self.correction_reply.serves(max_tokens)):
            return self.correction
        return None

    def result(self, form: Form, unanswered: dict[str, Verdict]) -> tuple[Parsed, str]:
        """The outcome and the key of the call that decided it."""
        if self.reply is None or self.parsed is None:
            return Parsed(_unanswered(unanswered, self.call)), self.call.key
        verdict = unanswered.get(self.call.key)
        if self.parsed.status == "truncated_reply" and verdict and verdict.status == "over_budget":
            return Parsed("over_budget"), self.call.key
        if self.correction is None:
            return self.parsed, self.call.key
        if self.correction_reply is not None:
            reply = self.correction_reply
            return (
                parse(self.source.kind, form, reply.text, reply.finish_reason, self.source.texts),
                self.correction.key,
            )
        verdict = unanswered.get(self.correction.key)
        status = "over_budget" if verdict and verdict.status == "over_budget" else self.parsed.status
        return Parsed(status), self.call.key


def _unanswered(unanswered: dict[str, Verdict], call: Call) -> str:
    return unanswered[call.key].status if call.key in unanswered else "call_failed"


def resolve(lookup: Lookup, prompter: Prompter, sources: list[Source], api_base: str = "") -> list[Step]:
    """What the ledger already knows about these sources, correction turns included."""
    calls = [prompter.call(source) for source in sources]
    replies = lookup.replies(call.key for call in calls)
    steps: list[Step] = []
    for source, call in zip(sources, calls, strict=True):
        reply = replies.get(call.key)
        parsed = parse(source.kind, prompter.form, reply.text, reply.finish_reason, source.texts) if reply else None
        correction = None
        if reply and parsed and parsed.status in CORRECTABLE:
            correction = prompter.correction(source, call, reply.text or "", parsed.status)
        steps.append(Step(source, call, reply, parsed, correction))
    second = lookup.replies(step.correction.key for step in steps if step.correction)
    open_keys = [c.key for step in steps for c in (step.call, step.correction) if c]
    tried = lookup.attempts(open_keys, api_base)
    return [
        Step(
            s.source,
            s.call,
            s.reply,
            s.parsed,
            s.correction,
            second.get(s.correction.key) if s.correction else None,
            {key: a for key, a in tried.items() if key[0] in (s.call.key, s.correction.key if s.correction else "")},
        )
        for s in steps
    ]
