"""Detects outages of the teacher. A run waits for the end of an outage, up to a limit, and counts no attempts.

The evidence is whether other calls are answered. Single errors are classified in `failures.py`; the rate of calls is in
`limits.py`.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from srt_assets.core.errors import StageError
from srt_assets.core.teacher.failures import Failure

# Seconds. A teacher that cannot be reached at the start of a run most likely has a wrong address, so the wait is short.
UNREACHABLE_AT_START_S = 4.0
# After this many failures in a row that may have been billed, the run stops paying for more.
BILLED_IN_A_ROW = 50
# This many calls that fail together are a storm, even if each of them has failed before.
_STORM = 5
# All calls wait if this share of the calls under way has failed and none was answered in between.
_SHARE = 0.25

_REMEDIES = {
    "throttled": "lower teacher.rpm, teacher.tpm or teacher.concurrency, or wait, and run again",
    "unreachable": "start it, or correct teacher.api_base, and run again",
    "timeout": "raise teacher.timeout_s or look at the teacher, and run again",
}


@dataclass
class Health:
    """What a run has seen of its teacher. `where`: the teacher's name in messages. Times in seconds, monotonic.

    A call is `fresh` if no attempt of it has failed yet: there is no evidence against the call itself.
    """

    where: str
    patience_s: float
    concurrency: int
    clock: Callable[[], float] = time.monotonic
    answers: int = 0
    under_way: int = 0
    since: float | None = None
    last: Failure | None = None
    _failing: dict[str, bool] = field(default_factory=dict)
    _billed: int = 0
    _outcome: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def waited_s(self) -> float:
        """Seconds since the first failure after the last reply."""
        return 0.0 if self.since is None else self.clock() - self.since

    @property
    def left_s(self) -> float:
        """Seconds that the run will still wait."""
        return max(0.0, self.patience_s - self.waited_s)

    def answered(self) -> None:
        """Note a reply: the teacher is up."""
        self.answers += 1
        self.since = self.last = None
        self._failing.clear()
        self._billed = 0
        self._tell()

    def failed(self, call_key: str, failure: Failure, is_fresh: bool) -> None:
        """Note a failure that may be the teacher's fault. StageError if the run has waited or paid long enough."""
        if self.since is None:
            self.since = self.clock()
        self.last = failure
        self._failing[call_key] = is_fresh
        self._billed += failure.perhaps_billed
        self._tell()
        if failure.kind == "unreachable" and not self.answers and self.waited_s > UNREACHABLE_AT_START_S:
            raise self._gave_up(f"the teacher at {self.where} cannot be reached: {failure.message}", failure)
        if self._billed >= max(BILLED_IN_A_ROW, 2 * self.concurrency):
            raise self.all_failed(failure)
        if not self.is_down(failure):
            return
        asked = failure.retry_after_s or 0.0
        if asked > self.left_s and asked > self.waited_s:
            raise self._gave_up(f"the teacher at {self.where} asks to wait {span(asked)}: {failure.told}", failure)
        if asked > self.left_s or not self.left_s:
            raise self._gave_up(
                f"the teacher at {self.where} has answered nothing for {span(self.waited_s)} "
                f"(teacher.patience_s = {self.patience_s:g}); the last: {failure.told}",
                failure,
            )

    def is_down(self, failure: Failure) -> bool:
        """Whether all calls should wait after this failure."""
        if failure.action == "throttled" or failure.kind == "unreachable":
            return True
        if not self.answers and not failure.perhaps_billed and any(self._failing.values()):
            return True
        return self.is_storm

    @property
    def is_storm(self) -> bool:
        """Whether many calls fail together and none is answered in between."""
        many = len(self._failing) >= max(2, self.under_way * _SHARE)
        return many and (any(self._failing.values()) or len(self._failing) >= _STORM)

    def is_outage(self, call_key: str, failure: Failure, is_fresh: bool, answered_since: bool) -> bool:
        """Whether the teacher, not the call, is at fault. Called once the results of other calls are known."""
        if failure.kind == "unreachable":
            return True
        if answered_since:
            return False
        others_fail = any(fresh for key, fresh in self._failing.items() if key != call_key)
        if failure.perhaps_billed:  # each retry may be billed, so in doubt the call is at fault
            return others_fail if is_fresh else len(self._failing) >= _STORM
        return others_fail or (is_fresh and not self.answers)

    async def outcome(self, at_most_s: float) -> None:
        """Return when a call has been answered or has failed, or after this time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._outcome.wait(), at_most_s)

    def all_failed(self, failure: Failure) -> StageError:
        """The error for too many failures in a row that may have been billed."""
        return self._gave_up(
            f"the last {self._billed} calls to the teacher at {self.where} all failed; the last: {failure.told}",
            failure,
        )

    def waits_for(self) -> str:
        """For progress: how long the run has waited, how long it will wait, and for what; '' if it does not wait."""
        if self.since is None or self.last is None or self.waited_s < 1 or not self.is_down(self.last):
            return ""
        return f"{span(self.waited_s)} of {span(self.patience_s)}, {self.last.told}"

    def _tell(self) -> None:
        self._outcome.set()
        self._outcome = asyncio.Event()

    def _gave_up(self, what: str, failure: Failure) -> StageError:
        remedy = _REMEDIES.get(failure.kind, "look at the teacher, or wait, and run again")
        return StageError(what, f"{remedy}; replies so far are kept, and no record is given up for it")


def span(seconds: float) -> str:
    """A duration for people, in seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
