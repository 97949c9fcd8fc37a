"""Decides whether a call must be sent: the one rule for the flow, file batches, `srt estimate` and `srt why-call`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from srt_assets.core.teacher.call import Call
from srt_assets.core.teacher.known import Attempts, Reply

# A call is sent only if its context leaves at least this many tokens for the reply.
MIN_REPLY_TOKENS = 256
_CHAT_TOKENS = 16  # a message's framing, at most

Counter = Callable[[Call], Awaitable[int]]
# Why a call has no reply: over_budget, too_long, refused, unreadable_reply, teacher_busy or call_failed.
Verdict = str


@dataclass(frozen=True, slots=True)
class Turn:
    """One call and what the ledger knows of it: its reply, and failed attempts by the tokens allowed for the reply."""

    call: Call
    reply: Reply | None = None
    tried: dict[int, Attempts] = field(default_factory=dict)

    @property
    def is_older(self) -> bool:
        """The reply is to the prompt of an older program. It is used: an upgrade alone must not cause a paid call."""
        return self.reply is not None and self.reply.key != self.call.key


@dataclass(frozen=True, slots=True)
class Ask:
    """The call must be sent: tokens allowed for its reply, number of this attempt (the first is 1)."""

    allowed: int
    attempt: int


def must_ask(turn: Turn, allowed: int | None, max_attempts: int) -> Reply | Verdict | Ask:
    """The usable reply, or the reason why the call is not sent, or how to send it.

    `allowed`: tokens for the reply; None if the call does not fit into the context.
    """
    if allowed is None:
        return "too_long"
    if turn.reply and turn.reply.serves(allowed):
        return turn.reply
    tried = turn.tried.get(allowed)
    if tried and (tried.hopeless or tried.count >= max_attempts):
        return verdict_of(tried.kind)
    return Ask(allowed, tried.count + 1 if tried else 1)


def verdict_of(kind: str) -> Verdict:
    """The verdict on a record whose call failed last with this kind of failure."""
    verdicts = {"context_length": "too_long", "content_filter": "refused", "unreadable_reply": "unreadable_reply"}
    return verdicts.get(kind, "call_failed")


@dataclass(frozen=True, slots=True)
class Room:
    """The teacher's limits: tokens of its context (None: unknown) and of a reply. `count` counts a request's tokens.

    A running server counts the tokens itself; without a server, `count` estimates them.
    """

    context: int | None
    wanted: int
    count: Counter

    async def allowance(self, call: Call) -> int | None:
        """Tokens allowed for the reply; depends only on the call and the settings. None if the call is too long."""
        if self.context is None or prompt_bound(call) + self.wanted <= self.context:
            return self.wanted
        left = self.context - await self.count(call)
        return min(self.wanted, left) if left >= min(self.wanted, MIN_REPLY_TOKENS) else None


def prompt_bound(call: Call) -> int:
    """An upper bound of the request's tokens for any tokenizer."""
    return call.size_bytes + _CHAT_TOKENS * len(call.messages)
