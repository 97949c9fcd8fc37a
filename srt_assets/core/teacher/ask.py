"""Must this call still be asked? Answered once, for the flow, file batches, `srt estimate` and `srt why-call`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from srt_assets.core.teacher.call import Call
from srt_assets.core.teacher.known import Attempts, Reply

# A reply needs at least this much room beside the prompt to be worth its price.
MIN_REPLY_TOKENS = 256
_CHAT_TOKENS = 16  # a message's framing, at most

Counter = Callable[[Call], Awaitable[int]]
# Why a call has no reply: over_budget, too_long, refused, unreadable_reply, teacher_busy or call_failed.
Verdict = str


@dataclass(frozen=True, slots=True)
class Turn:
    """One call and what the ledger knows of it: its reply; failed tries, by the tokens that were allowed."""

    call: Call
    reply: Reply | None = None
    tried: dict[int, Attempts] = field(default_factory=dict)

    @property
    def is_older(self) -> bool:
        """An older program asked it, in its own words: the reply serves, for an upgrade alone is no reason to pay."""
        return self.reply is not None and self.reply.key != self.call.key


@dataclass(frozen=True, slots=True)
class Ask:
    """The call is to be sent: tokens its reply is allowed, number of this attempt (1 is the first)."""

    allowed: int
    attempt: int


def must_ask(turn: Turn, allowed: int | None, max_attempts: int) -> Reply | Verdict | Ask:
    """The reply that serves, or why no run asks any more, or how to ask. `allowed` is None if it is too long."""
    if allowed is None:
        return "too_long"
    if turn.reply and turn.reply.serves(allowed):
        return turn.reply
    tried = turn.tried.get(allowed)
    if tried and (tried.hopeless or tried.count >= max_attempts):
        return verdict_of(tried.kind)
    return Ask(allowed, tried.count + 1 if tried else 1)


def verdict_of(kind: str) -> Verdict:
    """What the last failure of a call means for its record."""
    verdicts = {"context_length": "too_long", "content_filter": "refused", "unreadable_reply": "unreadable_reply"}
    return verdicts.get(kind, "call_failed")


@dataclass(frozen=True, slots=True)
class Room:
    """What a teacher can take: tokens of its context (None: not known) and of a reply; `count` counts a request's.

    A running server counts its own tokens; who has none running brings a guess.
    """

    context: int | None
    wanted: int
    count: Counter

    async def allowance(self, call: Call) -> int | None:
        """Tokens the reply may have: a function of the call and the settings only. None if the call is too long."""
        if self.context is None or prompt_bound(call) + self.wanted <= self.context:
            return self.wanted
        left = self.context - await self.count(call)
        return min(self.wanted, left) if left >= min(self.wanted, MIN_REPLY_TOKENS) else None


def prompt_bound(call: Call) -> int:
    """More tokens than any tokenizer makes of the request, without running one."""
    return call.size_bytes + _CHAT_TOKENS * len(call.messages)
