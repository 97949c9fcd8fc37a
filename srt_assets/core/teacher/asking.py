"""Makes all missing calls of a stage, one by one or in file batches. Making rows of the replies is in `rows.py`."""

import functools
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from srt_assets.core.lake import Lake
from srt_assets.core.progress import Fact, Progress
from srt_assets.core.teacher import sealing
from srt_assets.core.teacher.ask import Turn, Verdict
from srt_assets.core.teacher.call import Prompter
from srt_assets.core.teacher.engine import Engine, Tally
from srt_assets.core.teacher.flow import Exchange
from srt_assets.core.teacher.known import Reply
from srt_assets.core.teacher.lookup import Lookup
from srt_assets.core.teacher.parse import CORRECTABLE
from srt_assets.core.teacher.rows import Rows
from srt_assets.core.teacher.steps import Step, read
from srt_assets.core.teacher.survey import Survey
from srt_assets.settings import Teacher

# Steps handed to the flow in one chunk.
_TOGETHER = 100
_REPORT_EVERY = 1000


@dataclass
class Asking:
    """The calls of one run. `unanswered`: calls without a reply, with the reason; `asked`: steps that needed a call."""

    teacher: Teacher
    prompter: Prompter
    share: str
    tally: Tally = field(default_factory=Tally)
    unanswered: dict[str, Verdict] = field(default_factory=dict)
    asked: int = 0
    done: int = 0

    def run(self, lake: Lake, survey: Survey, rows: Rows, progress: Progress) -> None:
        """Take the rows that need no call, then make every missing call. The replies go into the ledger."""
        sealing.seal(lake)
        total = survey.pairs
        with Lookup(lake) as lookup:
            self._settle(survey, rows, lookup, progress)
            self.asked = survey.askable
            # LiteLLM and the local server are slow to load, so they are loaded only if there is a call to make.
            if self.asked and self.teacher.batch:
                lookup.close()
                self._ask_batches(lake, survey, rows, progress)
            elif self.asked:
                self._ask_all(lake, survey, lookup, progress)
        progress(total, total, "records")

    def _settle(self, survey: Survey, rows: Rows, lookup: Lookup, progress: Progress) -> None:
        for done in rows.take(survey.settled(lookup, self.teacher.max_tokens)):
            if done % _REPORT_EVERY == 0:
                progress(done, survey.pairs, "records")

    def _ask_batches(self, lake: Lake, survey: Survey, rows: Rows, progress: Progress) -> None:
        from srt_assets.core.teacher.batch import ask_batches

        def missing(lookup: Lookup) -> Iterator[Step]:
            self._settle(survey, rows, lookup, progress)
            return survey.missing(lookup, self.teacher.api_base)

        self.unanswered, self.tally = ask_batches(self.teacher, lake, self.share, missing, progress)

    def _ask_all(self, lake: Lake, survey: Survey, lookup: Lookup, progress: Progress) -> None:
        from srt_assets.core.teacher.session import ask_all

        started = time.monotonic()
        hits = survey.pairs - self.asked

        def report(waiting: str = "") -> None:
            elapsed = max(1e-6, time.monotonic() - started)
            facts: dict[str, Fact] = {
                "calls": self.tally.calls,
                "tokens_per_s": self.tally.completion_tokens / elapsed,
            }
            if self.tally.cost_usd:
                facts["cost_usd"] = round(self.tally.cost_usd, 4)
            if self.tally.throttled:
                facts["throttled"] = self.tally.throttled
            if waiting:
                facts = {"waiting": waiting}
            progress(min(survey.pairs, hits + self.done), survey.pairs, "records", **facts)

        steps = survey.missing(lookup, self.teacher.api_base)
        exchanges: Iterator[list[Exchange]] = iter(
            lambda: [functools.partial(self._solve, step) for step in itertools.islice(steps, _TOGETHER)], []
        )
        ask_all(self.teacher, lake, lookup, exchanges, self.tally, report)

    async def _solve(self, step: Step, engine: Engine) -> None:
        """Make the call, and a correction turn if its reply cannot be parsed."""
        turn = step.missing(self.teacher.max_tokens)
        assert turn is not None
        answer = await engine.ask(turn)
        if isinstance(answer, Reply) and turn is step.first:
            source, parsed = step.source, read(step.source, self.prompter, answer)
            if parsed.status in CORRECTABLE and not engine.stopping:
                turn = Turn(self.prompter.correction(source, turn.call, answer.text or "", parsed.status))
                answer = await engine.ask(turn)
        if isinstance(answer, str):  # a verdict
            self.unanswered[turn.call.key] = answer
        self.done += 1
