"""One call from wish to ledger: measured, paid for, paced, sent, retried within bounds, written down."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from srt_assets.core.errors import StageError, UserError
from srt_assets.core.teacher import ends
from srt_assets.core.teacher.answers import Answer
from srt_assets.core.teacher.ask import Ask, Turn, Verdict, must_ask, prompt_bound, verdict_of
from srt_assets.core.teacher.call import Call
from srt_assets.core.teacher.client import Client
from srt_assets.core.teacher.failures import Failure, classify
from srt_assets.core.teacher.ledger import Ledger
from srt_assets.core.teacher.limits import Gate, RateLimit, backoff_s
from srt_assets.core.teacher.lookup import INTERRUPTED, Reply
from srt_assets.core.teacher.money import Budget, Prices
from srt_assets.settings import Teacher

# The request was sent and no usable answer came: the provider may have worked, and a hard budget counts the worst.
PERHAPS_BILLED = ("timeout", "connection", "bad_reply")
# How long a teacher may refuse everything before the run ends with a message instead of hanging.
PATIENCE_S = 900.0
UNREACHABLE_AT_START_S = 4.0
UNREACHABLE_S = 60.0
# So many 400s and no reply yet: the settings or the server are wrong, not that many records.
REFUSED_AT_START = 20


@dataclass
class Tally:
    """What a run did, for people: calls paid, tokens, money (USD, if `priced`), retries, by kind of failure."""

    calls: int = 0
    priced: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    throttled: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def plus(self, more: "Tally") -> "Tally":
        """Both together."""
        sums = {f.name: getattr(self, f.name) + getattr(more, f.name) for f in fields(self)}
        return Tally(**sums | {"priced": self.priced and more.priced})

    def add(self, answer: Answer, cost: float | None) -> None:
        """Count one reply."""
        self.calls += 1
        self.prompt_tokens += answer.prompt_tokens or 0
        self.completion_tokens += answer.completion_tokens or 0
        self.cost_usd += cost or 0.0


@dataclass(eq=False)
class Engine:
    """Asks calls on one event loop, and counts into `tally` what came of it."""

    teacher: Teacher
    client: Client
    ledger: Ledger
    prices: Prices
    budget: Budget
    rate: RateLimit
    gate: Gate
    tally: Tally
    sending: set[asyncio.Task[Any]] = field(default_factory=set)
    stopping: bool = False
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    _tokens_per_byte: float = 0.0
    _replied: bool = False
    _trouble_since: float | None = None
    _failed_in_a_row: int = 0
    _refused: int = 0

    def __post_init__(self) -> None:
        self._ends = ends.Streak(self.teacher.good_finish_reasons)

    async def ask(self, turn: Turn) -> Reply | Verdict:
        """The reply to a call, on disk, or why there is none.

        Raises StageError or UserError when no call can succeed (teacher gone, key refused, no funds).
        """
        call = turn.call
        ask = must_ask(turn, await self.client.room.allowance(call), self.teacher.max_attempts)
        if not isinstance(ask, Ask):
            return ask
        allowed, attempt = ask.allowed, ask.attempt
        while True:
            if self.stopping:  # a call that failed while the run ends is not sent again: nobody would keep its reply
                return "call_failed"
            reserved = self.prices.most(prompt_bound(call), allowed)
            if not await self._reserve_money(reserved):
                return "over_budget"
            answer = await self._send(call, allowed, reserved, attempt)
            if isinstance(answer, Failure) and answer.action == "throttled":
                continue
            if isinstance(answer, Failure) and answer.kind == "unreachable":
                await asyncio.sleep(backoff_s(1, random.random()))
                continue
            row = ledger_row(self.teacher, call, allowed, attempt) | answer.columns
            row["cost_usd"] = cost_of(answer, self.prices, reserved)
            if isinstance(answer, Answer):
                await self.ledger.append(row | {"latency_s": answer.latency_s})
                self._ends.add(answer.finish_reason, answer.native_finish_reason)
                told = (answer.native_finish_reason, answer.note)
                return Reply(answer.text, answer.finish_reason, allowed, call.key, *told)
            await self.ledger.append(row)
            if answer.action == "record" or attempt >= self.teacher.max_attempts:
                return verdict_of(answer.kind)
            await asyncio.sleep(max(backoff_s(attempt, random.random()), answer.retry_after_s or 0.0))
            attempt += 1

    # -- one attempt

    async def _send(self, call: Call, allowed: int, reserved: float, attempt: int) -> Answer | Failure:
        cost = 0.0
        task = asyncio.current_task()
        assert task is not None
        await self.gate.enter()
        try:
            tokens = self._expected_tokens(call, allowed)
            entry = await self.rate.reserve(tokens)
            while (closed := self.gate.closed_for_s) > 0:
                self.rate.withdraw(entry)
                await asyncio.sleep(closed)
                entry = await self.rate.reserve(tokens)
            self.sending.add(task)
            try:
                answer = await self.client.complete(call, allowed)
            except asyncio.CancelledError:
                # A stop whose grace is over. The provider goes on, and bills: no attempt, but money of a hard budget.
                cost = reserved
                facts = {"status": INTERRUPTED, "cost_usd": reserved if self.prices.known else None}
                self.ledger.put(ledger_row(self.teacher, call, allowed, attempt) | facts)
                raise
            except Exception as error:  # noqa: BLE001 - every kind of failure becomes data; classify tells them apart
                failure = classify(error)
                self.rate.settle(entry, 0 if failure.action == "throttled" else entry.tokens)
                cost = cost_of(failure, self.prices, reserved) or 0.0
                self.tally.cost_usd += cost
                self._failed(failure)
                return failure
            cost = cost_of(answer, self.prices, reserved) or 0.0
            self._succeeded(call, answer, cost)
            used = (answer.prompt_tokens or 0) + (answer.completion_tokens or 0)
            self.rate.settle(entry, used or entry.tokens)
            return answer
        finally:
            self.sending.discard(task)
            self.gate.leave()
            self.budget.settle(reserved, cost)
            self._settled.set()

    def _succeeded(self, call: Call, answer: Answer, cost: float) -> None:
        self.gate.succeeded()
        self._replied = True
        self._trouble_since = None
        self._failed_in_a_row = 0
        self.tally.add(answer, cost)
        if answer.prompt_tokens:
            self._tokens_per_byte = max(self._tokens_per_byte, answer.prompt_tokens / max(1, call.size_bytes))

    def _failed(self, failure: Failure) -> None:
        """Count the failure; raise if it means that no call can succeed."""
        self.tally.failures[failure.kind] += 1
        if failure.action == "stop":
            raise halt(failure, self.teacher)
        where = self.client.api_base or f"the provider of {self.teacher.model}"
        if failure.action == "record":
            self._refused += failure.kind == "bad_request"
            if not self._replied and self._refused >= REFUSED_AT_START:
                raise halt(failure, self.teacher)
            return
        if (asked := failure.retry_after_s or 0.0) > PATIENCE_S:
            raise StageError(
                f"the teacher at {where} asks to wait {asked / 60:.0f} minutes: {failure.message}",
                "run again after that; replies so far are kept",
            )
        self._trouble_since = self._trouble_since or time.monotonic()
        troubled_s = time.monotonic() - self._trouble_since
        if failure.action == "throttled":
            self.tally.throttled += 1
            self.gate.throttled(failure.retry_after_s)
            if troubled_s > PATIENCE_S:
                raise StageError(
                    f"the teacher answered nothing but 429 (too many requests) for {troubled_s / 60:.0f} minutes",
                    "lower teacher.rpm, teacher.tpm or teacher.concurrency, or wait, and run again; replies are kept",
                )
        elif failure.kind == "unreachable":
            if troubled_s > (UNREACHABLE_S if self._replied else UNREACHABLE_AT_START_S):
                raise StageError(
                    f"the teacher at {where} cannot be reached: {failure.message}",
                    "start it, or correct teacher.api_base, and run again; replies so far are kept",
                )
        else:
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= max(50, 2 * self.teacher.concurrency):
                raise StageError(
                    f"the last {self._failed_in_a_row} calls to the teacher at {where} all failed; the last: "
                    f"{failure.kind}, {failure.message}",
                    "look at the teacher, then run again; replies so far are kept",
                )

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
    """USD of what came back; `most` where its usage is not believable, for a hard budget counts the worst."""
    if not prices.known:
        return None
    if isinstance(answer, Failure):
        if answer.kind in PERHAPS_BILLED:
            return most
        sent, received = answer.billed
        return (prices.cost(sent, received or 0) if sent else most) if answer.kind == "unreadable_reply" else 0.0
    if answer.prompt_tokens is None or (answer.completion_tokens is None and answer.text):
        return most
    return prices.cost(answer.prompt_tokens, answer.completion_tokens or 0, answer.cached_tokens or 0)


def ledger_row(teacher: Teacher, call: Call, allowed: int, attempt: int) -> dict[str, Any]:
    """The columns of `teacher_calls` that do not depend on what came back."""
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


def halt(failure: Failure, teacher: Teacher) -> Exception:
    where = f"teacher.model = {teacher.model!r}"
    if failure.kind == "no_funds":
        return StageError(
            f"the provider of {where} says that the account has no funds left: {failure.message}",
            "top it up and run again; replies so far are kept and no record is marked failed",
        )
    if failure.kind == "open_files":
        return UserError(
            f"teacher.concurrency = {teacher.concurrency} needs more open files than this process may have",
            "lower teacher.concurrency, or raise the limit (ulimit -n), and run again; replies so far are kept",
        )
    remedies = {
        "authentication": "check the provider's API key in the environment",
        "permission": "check what the API key may do",
        "not_found": "check teacher.model and teacher.api_base",
        "bad_request": "check the teacher settings (reply_format, temperature, model) and the server",
    }
    return UserError(f"{where} refuses every call: {failure.message}", remedies[failure.kind])
