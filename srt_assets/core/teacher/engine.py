"""Runs one call: token limit, budget, rate limit, sending, retries, ledger. Many calls at once are in `flow.py`."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from srt_assets.core.teacher import ends
from srt_assets.core.teacher.answers import Answer
from srt_assets.core.teacher.ask import Ask, Turn, Verdict, must_ask, prompt_bound, verdict_of
from srt_assets.core.teacher.call import Call
from srt_assets.core.teacher.client import Client
from srt_assets.core.teacher.failures import Failure, classify
from srt_assets.core.teacher.health import Health
from srt_assets.core.teacher.known import INTERRUPTED, Reply
from srt_assets.core.teacher.ledger import Ledger
from srt_assets.core.teacher.limits import Limits, backoff_s
from srt_assets.core.teacher.money import Money, Prices
from srt_assets.core.teacher.unfit import halt, named
from srt_assets.settings import Teacher

# After this many 400s without any reply the run stops: the settings or the server are wrong, not so many records.
REFUSED_AT_START = 20
# After this many failures of an unknown kind without any reply the run stops: every call would fail like this.
UNEXPECTED_AT_START = 3
# A 400 whose text says "please wait" may only quote a record. While other calls are answered, one call is retried this
# often on such a text.
WORDS_BELIEVED = 20


@dataclass
class Tally:
    """Counts of a run: paid calls, tokens, money (USD, if `priced`), throttled calls, failures by kind, seconds."""

    calls: int = 0
    priced: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    throttled: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def plus(self, more: "Tally") -> "Tally":
        """The sum of both."""
        sums = {f.name: getattr(self, f.name) + getattr(more, f.name) for f in fields(self)}
        return Tally(**sums | {"priced": self.priced and more.priced})

    def add(self, answer: Answer, cost: float | None) -> None:
        """Count one reply."""
        self.calls += 1
        self.prompt_tokens += answer.prompt_tokens or 0
        self.completion_tokens += answer.completion_tokens or 0
        self.cost_usd += cost or 0.0


@dataclass
class _Sent:
    """A call in flight. `answers_before`: replies that the run had received when the call was sent.

    `met_outage`: it failed together with other calls, so a reply to another call a moment later is no evidence that
    this call itself is at fault.
    """

    call: Call
    allowed: int
    attempt: int
    answers_before: int = 0
    met_outage: bool = False

    @property
    def is_fresh(self) -> bool:
        return self.attempt == 1


@dataclass
class _Patience:
    """Limits how long one throttled call is retried while other calls are answered."""

    seconds: float
    since: float | None = None
    answers: int = 0
    doubts: int = 0

    def has(self, failure: Failure, answers: int) -> bool:
        """Whether to retry the call. `answers`: replies of the run so far. If there are none, `Health` ends the run."""
        if self.since is None:
            self.since, self.answers = time.monotonic(), answers
        if answers == self.answers:
            return True
        self.doubts += failure.by_words
        return time.monotonic() - self.since < self.seconds and self.doubts <= WORDS_BELIEVED


@dataclass(eq=False)
class Engine:
    """Makes calls on one event loop and counts the results in `tally`."""

    client: Client
    ledger: Ledger
    money: Money
    limits: Limits
    health: Health
    tally: Tally
    sending: set[asyncio.Task[Any]] = field(default_factory=set)
    stopping: bool = False
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    _tokens_per_byte: float = 0.0
    refused: Failure | None = None
    _refusals: int = 0
    _unexpected: int = 0

    def __post_init__(self) -> None:
        self.teacher, self.prices, self.budget = self.client.teacher, self.money.prices, self.money.budget
        self._ends = ends.Streak(self.teacher.good_finish_reasons)

    async def ask(self, turn: Turn) -> Reply | Verdict:
        """The reply to a call, already in the ledger, or the reason why there is none.

        StageError or UserError if no call can succeed (teacher down, key refused, no funds).
        """
        ask = must_ask(turn, await self.client.room.allowance(turn.call), self.teacher.max_attempts)
        if not isinstance(ask, Ask):
            return ask
        self.health.under_way += 1
        try:
            return await self._ask(turn.call, ask.allowed, ask.attempt)
        finally:
            self.health.under_way -= 1

    async def _ask(self, call: Call, allowed: int, attempt: int) -> Reply | Verdict:
        tries, patience = 0, _Patience(self.teacher.patience_s)
        while True:
            if self.ledger.full:  # the disk may have no space for the reply
                raise self.ledger.full
            if self.stopping:  # a retry while the run ends would lose its reply
                return "call_failed"
            reserved = self.prices.most(prompt_bound(call), allowed)
            if not await self._reserve_money(reserved):
                return "over_budget"
            sent = _Sent(call, allowed, attempt)
            answer = await self._send(sent, reserved)
            row = ledger_row(self.teacher, call, allowed, attempt) | answer.columns
            row["cost_usd"] = cost_of(answer, self.prices, reserved)
            if isinstance(answer, Answer):
                await self.ledger.append(row | {"latency_s": answer.latency_s})
                self._ends.add(answer.finish_reason, answer.native_finish_reason)
                told = (answer.native_finish_reason, answer.note)
                return Reply(answer.text, answer.finish_reason, allowed, call.key, *told)
            if answer.action == "throttled":
                if patience.has(answer, self.health.answers):
                    continue
                if not answer.by_words:
                    return "teacher_busy"
                row["status"] = "bad_request"
            if answer.action != "transient":
                await self.ledger.append(row)
                return verdict_of(row["status"])
            tries += 1
            if await self._is_outage(sent, answer, row, tries):
                continue
            if attempt >= self.teacher.max_attempts:
                return verdict_of(answer.kind)
            attempt += 1

    async def _is_outage(self, sent: "_Sent", failure: Failure, row: dict[str, Any], tries: int) -> bool:
        """Wait for the results of other calls, which tell whether the teacher or this call is at fault.

        Then write the row: as an attempt if the call is at fault; in an outage only if it may have been billed.
        """
        answered = sent.answers_before if failure.perhaps_billed else self.health.answers
        outage = True  # until known: if the run is stopped now, no attempt is counted
        try:
            await asyncio.sleep(max(backoff_s(tries, random.random()), failure.retry_after_s or 0.0))
            until = time.monotonic() + self.teacher.timeout_s
            while not sent.met_outage and self.health.answers == answered and self.sending and time.monotonic() < until:
                await self.health.outcome(1.0)
            others = self.health.answers > answered
            outage = sent.met_outage or self.health.is_outage(sent.call.key, failure, sent.is_fresh, others)
        finally:
            if not outage:
                self.ledger.put(row)
            elif failure.perhaps_billed:
                self.ledger.put(row | {"attempt": 0})
        if outage and failure.perhaps_billed and tries >= self.teacher.max_attempts:
            raise self.health.all_failed(failure)
        return outage

    # -- one attempt

    async def _send(self, sent: "_Sent", reserved: float) -> Answer | Failure:
        call, allowed, cost = sent.call, sent.allowed, 0.0
        task = asyncio.current_task()
        assert task is not None
        await self.limits.gate.enter()
        try:
            tokens = self._expected_tokens(call, allowed)
            entry = await self.limits.rate.reserve(tokens)
            while (closed := self.limits.gate.closed_for_s) > 0:
                self.limits.rate.withdraw(entry)
                await asyncio.sleep(closed)
                entry = await self.limits.rate.reserve(tokens)
            self.sending.add(task)
            sent.answers_before = self.health.answers
            try:
                answer = await self.client.complete(call, allowed)
            except asyncio.CancelledError:
                # The grace period after a stop is over. The provider may still bill the call: it counts for the budget,
                # not as an attempt.
                cost = reserved
                facts = {"status": INTERRUPTED, "cost_usd": reserved if self.prices.known else None}
                self.ledger.put(ledger_row(self.teacher, call, allowed, sent.attempt) | facts)
                raise
            except Exception as error:  # noqa: BLE001 - every failure becomes data; `classify` knows its kind
                failure = classify(error)
                self.limits.rate.settle(entry, 0 if failure.action == "throttled" else entry.tokens)
                cost = cost_of(failure, self.prices, reserved) or 0.0
                self.tally.cost_usd += cost
                self._failed(sent, failure)
                return failure
            cost = cost_of(answer, self.prices, reserved) or 0.0
            self._succeeded(call, answer, cost)
            used = (answer.prompt_tokens or 0) + (answer.completion_tokens or 0)
            self.limits.rate.settle(entry, used or entry.tokens)
            return answer
        finally:
            self.sending.discard(task)
            self.limits.gate.leave()
            self.budget.settle(reserved, cost)
            self._settled.set()

    def _succeeded(self, call: Call, answer: Answer, cost: float) -> None:
        self.limits.gate.succeeded()
        self.health.answered()
        self.tally.add(answer, cost)
        if answer.prompt_tokens:
            self._tokens_per_byte = max(self._tokens_per_byte, answer.prompt_tokens / max(1, call.size_bytes))

    def _failed(self, sent: "_Sent", failure: Failure) -> None:
        """Count the failure; raise if no call can succeed."""
        self.tally.failures[failure.kind] += 1
        if failure.action == "stop":
            raise halt(failure, self.teacher)
        if failure.action == "record":
            if failure.kind != "bad_request":
                self.health.answered()
                return
            self.refused, self._refusals = failure, self._refusals + 1
            names_a_setting = named(failure, self.teacher) is not None
            if not self.health.answers and (names_a_setting or self._refusals >= REFUSED_AT_START):
                raise halt(failure, self.teacher)
            return
        self._unexpected += failure.kind == "unexpected"
        if not self.health.answers and self._unexpected >= UNEXPECTED_AT_START:
            raise halt(failure, self.teacher)
        self.health.failed(sent.call.key, failure, sent.is_fresh)
        self.tally.throttled += failure.action == "throttled"
        if self.health.is_down(failure):
            sent.met_outage = self.health.is_storm and not failure.perhaps_billed
            self.limits.gate.throttled(failure.retry_after_s, self.health.left_s)

    def ended(self) -> None:
        """Called when all calls are done. UserError if all were refused, which is no verdict on the records."""
        if self.refused and not self.health.answers:
            raise halt(self.refused, self.teacher)

    # -- measures

    def _expected_tokens(self, call: Call, allowed: int) -> int:
        bound = prompt_bound(call)
        if not self._tokens_per_byte:
            return bound // 2 + allowed
        return min(bound, int(call.size_bytes * self._tokens_per_byte * 1.1) + 1) + allowed

    async def _reserve_money(self, usd: float) -> bool:
        while (granted := self.budget.try_reserve(usd)) is None:
            self._settled.clear()
            await self._settled.wait()
        if not granted:
            self._settled.set()
        return granted


def cost_of(answer: Answer | Failure, prices: Prices, most: float) -> float | None:
    """Price of an answer or failure (USD); None without prices. `most` if the usage is missing or implausible."""
    if not prices.known:
        return None
    if isinstance(answer, Failure):
        if answer.perhaps_billed:
            return most
        sent, received = answer.billed
        return (prices.cost(sent, received or 0) if sent else most) if answer.kind == "unreadable_reply" else 0.0
    if answer.prompt_tokens is None or (answer.completion_tokens is None and answer.text):
        return most
    return prices.cost(answer.prompt_tokens, answer.completion_tokens or 0, answer.cached_tokens or 0)


def ledger_row(teacher: Teacher, call: Call, allowed: int, attempt: int) -> dict[str, Any]:
    """The columns of `teacher_calls` that do not depend on the answer."""
    return {
        "call_key": call.key,
        "sample_id": call.sample_id,
        "purpose": call.purpose,
        **call.facts,
        "model": teacher.model,
        "api_base": teacher.api_base,
        "max_tokens": allowed,
        "attempt": attempt,
        "created_at": datetime.now(UTC).replace(tzinfo=None),
    }
