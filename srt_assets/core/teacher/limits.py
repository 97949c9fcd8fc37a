"""Limits of requests per minute, tokens per minute and calls in flight. All waiting before a call happens here.

This waiting counts neither as an attempt nor for the timeout, which starts when the call is sent.
"""

import asyncio
import contextlib
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

WINDOW_S = 60.0
# A request reaches the server a moment after it is counted here, so the server's 60 seconds begin later than ours. If a
# call stopped counting here after exactly 60 seconds, the server could count one call too many, so a margin is added.
# On a busy machine the moment is longer: a call counts from its reply on, but at most LAG_S after it was first counted.
MARGIN_S = 0.5
LAG_S = 3.0

Clock = Callable[[], float]


@dataclass(slots=True, eq=False)
class Entry:
    """One admitted call in the sliding window. `tokens` is the reservation until it is settled."""

    at: float
    tokens: int
    counted: bool = True
    settled: bool = False


class RateLimit:
    """A sliding window over requests and tokens (0 = unlimited), first come first served.

    Tokens count as providers count them: first the most that the call can use, then the tokens it used.
    """

    def __init__(
        self, rpm: int, tpm: int, window_s: float = WINDOW_S, margin_s: float = MARGIN_S, clock: Clock = time.monotonic
    ) -> None:
        self.rpm = rpm
        self.tpm = tpm
        self._span = window_s + margin_s
        self._clock = clock
        self._entries: deque[Entry] = deque()
        self._tokens = 0
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def counts(self) -> bool:
        """Whether anything is limited; otherwise nothing is counted."""
        return bool(self.rpm or self.tpm)

    def remember(self, calls: Iterable[tuple[float, int]]) -> None:
        """Count earlier calls, the oldest first: (seconds since their reply, tokens).

        Ages of other processes' calls come from the wall clock. If one is negative because the clock was set back, the
        call counts as made now, so that no call waits longer than the window.
        """
        now = self._clock()
        for age_s, tokens in calls:
            self._entries.append(Entry(now - max(0.0, age_s), tokens, settled=True))
            self._tokens += tokens

    def made(self) -> list[tuple[float, int]]:
        """(seconds since, tokens) of the calls that still count, for the next `RateLimit` of this process."""
        now = self._clock()
        return [(now - entry.at, entry.tokens) for entry in self._entries if self._ends(entry) > now]

    async def reserve(self, tokens: int) -> Entry:
        """Wait until a call with this many tokens fits. A call larger than `tpm` waits for an empty window."""
        if not self.counts:
            return Entry(self._clock(), tokens)
        async with self._turn:
            while (wait := self._wait_s(tokens)) is not None:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait)
            entry = Entry(self._clock(), tokens)
            self._entries.append(entry)
            self._tokens += tokens
            return entry

    def settle(self, entry: Entry, tokens: int) -> None:
        """Replace the reservation by the tokens used (0 for a call that failed before the teacher worked)."""
        if self.counts:
            entry.at = min(self._clock(), entry.at + LAG_S)
            entry.settled = True
            if entry.counted:
                self._tokens += tokens - entry.tokens
            entry.tokens = tokens
            self._changed.set()

    def withdraw(self, entry: Entry) -> None:
        """Cancel a reservation whose call was not sent."""
        if entry.counted and self.counts:
            self._entries.remove(entry)
            self._tokens -= entry.tokens
            self._changed.set()

    def _wait_s(self, tokens: int) -> float | None:
        now = self._clock()
        while self._entries and self._ends(self._entries[0]) <= now:
            gone = self._entries.popleft()
            gone.counted = False
            self._tokens -= gone.tokens
        fits_requests = not self.rpm or len(self._entries) < self.rpm
        fits_tokens = not self.tpm or self._tokens + tokens <= self.tpm or not self._entries
        if fits_requests and fits_tokens:
            return None
        return max(0.001, self._ends(self._entries[0]) - now)

    def _ends(self, entry: Entry) -> float:
        # A call in flight may have reached the server only now.
        return entry.at + self._span + (0.0 if entry.settled else LAG_S)


class Gate:
    """Limits the calls in flight: fewer after throttling, more after successes, none while the server asks to wait."""

    CUT = 0.7
    COOLDOWN_S = 2.0
    RAISE_AFTER = 20
    PAUSE_S = 1.0
    PAUSE_MAX_S = 60.0

    def __init__(self, most: int, clock: Clock = time.monotonic, jitter: Callable[[], float] = random.random) -> None:
        self.most = most
        self.allowed = float(most)
        self.in_flight = 0
        self._clock = clock
        self._jitter = jitter
        self._open_at = 0.0
        self._cut_at = -self.COOLDOWN_S
        self._storm = 0
        self._successes = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._alarm: asyncio.TimerHandle | None = None

    async def enter(self) -> None:
        if not self._queue and self._free():
            self.in_flight += 1
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(future)
        self._admit()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        self.in_flight -= 1
        self._admit()

    def succeeded(self) -> None:
        self._storm = 0
        self._successes += 1
        if self._successes >= self.RAISE_AFTER and self.allowed < self.most:
            self._successes = 0
            self.allowed = min(self.most, self.allowed + max(1.0, self.allowed * 0.1))

    def throttled(self, retry_after_s: float | None, at_most_s: float = math.inf) -> None:
        """Note a throttled call: allow fewer calls at a time, and none for a while.

        The pause is `retry_after_s` if the server named one, else a growing time of at most `at_most_s` seconds.
        """
        now = self._clock()
        self._successes = 0
        if now - self._cut_at >= self.COOLDOWN_S:
            self._cut_at = now
            self.allowed = max(1.0, self.allowed * self.CUT)
            self._storm += 1
        ours = min(self.PAUSE_MAX_S, self.PAUSE_S * 2 ** min(self._storm - 1, 10))
        wait = min(ours * (0.5 + self._jitter() / 2), at_most_s) if retry_after_s is None else retry_after_s
        self._open_at = max(self._open_at, now + wait)

    @property
    def closed_for_s(self) -> float:
        """Seconds until the server may be called again; 0 if now."""
        return max(0.0, self._open_at - self._clock())

    def _free(self) -> bool:
        return self._places() and self._clock() >= self._open_at

    def _places(self) -> bool:
        return self.in_flight < max(1, int(self.allowed))

    def _admit(self) -> None:
        while self._queue and self._free():
            future = self._queue.popleft()
            if not future.done():
                self.in_flight += 1
                future.set_result(None)
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None
        if self._queue and self._places():
            # Only the pause is left to wait for, and only this timer ends the wait, also if the pause has just ended.
            wait = max(0.0, self._open_at - self._clock())
            self._alarm = asyncio.get_running_loop().call_later(wait + 0.001, self._admit)


class Limits(NamedTuple):
    """The limits of a run: per minute (`rate`) and in flight (`gate`)."""

    rate: RateLimit
    gate: Gate


def backoff_s(attempt: int, jitter: float, first: float = 1.0, most: float = 30.0) -> float:
    """Seconds before the next attempt of a call: doubles from `first` up to `most`; `jitter` in [0, 1) varies half."""
    return min(most, first * 2 ** min(attempt - 1, 16)) * (0.5 + jitter / 2)
