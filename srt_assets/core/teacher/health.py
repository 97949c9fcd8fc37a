"""Is the teacher up? An outage is no verdict on a record: it is waited for, within bounds, and spends no attempt.

The evidence is whether anybody is answered. What an error means by itself is in `failures.py`; how fast calls go while
they go is in `limits.py`.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from srt_assets.core.errors import StageError
from srt_assets.core.teacher.failures import Failure

# A teacher that cannot be reached when a run begins is most likely named wrongly.
UNREACHABLE_AT_START_S = 4.0
# So many calls in a row that may have been billed and brought nothing: the run must not go on paying for them.
BILLED_IN_A_ROW = 50
# So many calls that fail together are a storm, also if each of them has failed before.
_STORM = 5
# The share of the calls under way that must fail, with none answered in between, before all others wait.
_SHARE = 0.25

_REMEDIES = {
    "throttled": "lower teacher.rpm, teacher.tpm or teacher.concurrency, or wait, and run again",
    "unreachable": "start it, or correct teacher.api_base, and run again",
    "timeout": "raise teacher.timeout_s or look at the teacher, and run again",
}


@dataclass
class Health:
    """What a run has seen of its teacher. `where`: what it is called in messages; times in seconds, monotonic.

    A call is `fresh` that has spent no attempt yet: nothing speaks against the call itself.
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
        """How long no call has been answered, from the first failure on."""
        return 0.0 if self.since is None else self.clock() - self.since

    @property
    def left_s(self) -> float:
        """For how long a run still waits."""
        return max(0.0, self.patience_s - self.waited_s)

    def answered(self) -> None:
        """Somebody was answered: the teacher is up."""
        self.answers += 1
        self.since = self.last = None
        self._failing.clear()
        self._billed = 0
        self._tell()

    def failed(self, call_key: str, failure: Failure, is_fresh: bool) -> None:
        """Note a failure that may be the teacher's. StageError if the run has waited long enough, or paid enough."""
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
        """Should everybody wait after this failure?"""
        if failure.action == "throttled" or failure.kind == "unreachable":
            return True
        if not self.answers and not failure.perhaps_billed and any(self._failing.values()):
            return True
        return self.is_storm

    @property
    def is_storm(self) -> bool:
        """Many calls fail together, and none is answered in between."""
        many = len(self._failing) >= max(2, self.under_way * _SHARE)
        return many and (any(self._failing.values()) or len(self._failing) >= _STORM)

    def is_outage(self, call_key: str, failure: Failure, is_fresh: bool, answered_since: bool) -> bool:
        """Was this failure the teacher's, and not the call's? Asked when it is known what others met meanwhile."""
        if failure.kind == "unreachable":
            return True
        if answered_since:
            return False
        others_fail = any(fresh for key, fresh in self._failing.items() if key != call_key)
        if failure.perhaps_billed:  # each further try may be paid for: in doubt it is the call
            return others_fail if is_fresh else len(self._failing) >= _STORM
        return others_fail or (is_fresh and not self.answers)

    async def outcome(self, at_most_s: float) -> None:
        """Return when a call has been answered or has failed, or after this time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._outcome.wait(), at_most_s)

    def all_failed(self, failure: Failure) -> StageError:
        """The end of a run that may have paid for calls that brought nothing."""
        return self._gave_up(
            f"the last {self._billed} calls to the teacher at {self.where} all failed; the last: {failure.told}",
            failure,
        )

    def waits_for(self) -> str:
        """For progress: for how long the run has been waiting, for how long it will, and for what. '' if it is not."""
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
    """A time for people."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
