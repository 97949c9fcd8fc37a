"""What a stage is: an asset, the tables it fills, when they are right, and how they are made.

Here belongs what holds for every stage: the lock, the question whether the work is done, the commit, the memory of a
failure. What one stage does is in the room of that stage; which stages there are is in `stages.py`.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from srt_assets.core import reserve
from srt_assets.core.errors import Damaged, StageError, UserError, disk_full, explained
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Failure, Lake
from srt_assets.core.manifest import Manifest
from srt_assets.core.masking import redact
from srt_assets.core.outcome import Check, Checked, Description, Facts, Made, Outcome
from srt_assets.core.progress import Progress, silent
from srt_assets.core.tables import Table
from srt_assets.settings import Settings

# Starts a child process: command and extra environment to exit code (negative: killed by that signal).
Launcher = Callable[[Sequence[str], Mapping[str, str]], int]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What a stage is given to work with. `student` is '' for a stage that all students share; `want`: what the result
    must be made of; `renew`: pay again for what an older program has paid; `launch`: how to start a child process.
    """

    settings: Settings
    lake: Lake
    student: str
    partition: str | None
    want: Fingerprint
    progress: Progress
    renew: bool
    launch: Launcher | None


STATES = ("fresh", "changed", "missing", "failed", "damaged")


@dataclass(frozen=True)
class State:
    """Where an artefact stands. `state`: one of STATES; `why`: what changed or went wrong."""

    state: str
    why: str = ""


class Stage(ABC):
    """One asset of the graph. The docstring of a subclass is what people read about it in the UI.

    To add one: subclass it in a file of its own, and name the instance in `stages.STAGES`.
    """

    asset: ClassVar[str]
    # The main one first: it is committed last, so that who sees it also finds the others.
    tables: ClassVar[tuple[str, ...]]
    version: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    group: ClassVar[str]
    kinds: ClassVar[frozenset[str]]
    per_student: ClassVar[bool] = False
    # Tables that are described in its own file, not in `tables.py`.
    declares: ClassVar[tuple[Table, ...]] = ()
    # Of a table that several stages share, the partition that is this one's.
    share: ClassVar[str | None] = None
    # Tables it adds rows to at its own pace, without a commit at the end.
    feeds: ClassVar[tuple[str, ...]] = ()
    # What only so many steps may use at a time.
    pool: ClassVar[str | None] = None
    checks: ClassVar[tuple[Check, ...]] = ()
    # Making it costs money: what differs only in these facts, which are the program's, is not made again by itself.
    costs_money: ClassVar[bool] = False
    facts_of_program: ClassVar[frozenset[str]] = frozenset({"version"})
    # Making it costs nothing, but what a newer program makes of the same may cost money later: a person starts that.
    waits_for_person: ClassVar[bool] = False

    # -- what each stage says of itself

    @abstractmethod
    def wanted(self, settings: Settings, lake: Lake, student: str = "") -> Fingerprint:
        """What the artefact should be made of now. UserError or StageError if it cannot be made."""

    @abstractmethod
    def make(self, work: Work) -> Made:
        """Do the work and write parts; they count once `run` has committed them."""

    @abstractmethod
    def describe(self, lake: Lake, student: str = "") -> Description:
        """What people look at first."""

    def check(self, lake: Lake, student: str = "") -> list[Checked]:
        """The answers to `checks`."""
        return []

    def prepare(self, settings: Settings, lake: Lake, student: str) -> None:  # noqa: B027 - most have nothing to do
        """What must be done before anyone can say what is wanted."""

    def is_there(self, lake: Lake, student: str) -> bool:
        """False if something outside the lake is gone that the tables speak of."""
        return True

    def is_outdated(self, lake: Lake, student: str) -> bool:
        """True if rows name places that have moved: the next run writes them again, which costs nothing."""
        return False

    def tidy(self, work: Work) -> Facts:
        """Clean up after a commit; gives numbers about it."""
        return {}

    # -- what holds for all of them

    @property
    def main(self) -> str:
        return self.tables[0]

    def partition(self, student: str) -> str | None:
        return f"student={student}" if self.per_student else self.share

    def run(
        self,
        settings: Settings,
        lake: Lake,
        student: str = "",
        progress: Progress = silent,
        renew: bool = False,
        launch: Launcher | None = None,
        attended: bool = True,
    ) -> Outcome:
        """Bring the artefact up to date; returns at once if it is. A failure is remembered until the next try.

        `attended`: a person asked for this run. StageError if it is not, and needs one: see `waits_for_person`.
        """
        try:
            self.prepare(settings, lake, student)
            with lake.lock(self.main, self.partition(student)):
                return self._run(settings, lake, student, progress, renew, launch, attended)
        except Exception as error:
            if disk_full(error):
                reserve.give_back(lake.home)
                lake.drop_loose()
            self._remember(settings, lake, student, error)
            raise

    def _run(
        self,
        settings: Settings,
        lake: Lake,
        student: str,
        progress: Progress,
        renew: bool,
        launch: Launcher | None,
        attended: bool,
    ) -> Outcome:
        partition = self.partition(student)
        want = self.wanted(settings, lake, student)
        renew = renew and self.costs_money
        found = None if renew else self.right(lake, student, want)
        if self.waits_for_person and attended and found and found.fingerprint != want.digest:
            found = None
        if self.waits_for_person and not attended and not found:
            self._wait_for_person(lake.manifest(self.main, partition))
        if found and not self.is_outdated(lake, student):
            note = "" if found.fingerprint == want.digest else self.older(found, want)
            if note:
                log.warning("%s: %s", self.asset, note)
            return Outcome(found, cached=True, note=note)
        reserve.hold(lake.home)
        # What failed before is tried again now: it is not what a stopped run ended with.
        lake.forget_failure(self.main, partition)
        work = Work(settings, lake, student, partition, want, progress, renew, launch)
        made = self.make(work)
        for table in reversed(self.tables):
            manifest = lake.commit(
                table,
                made.parts[table],
                fingerprint=made.made_from or want,
                code_version=self.version,
                partition=partition,
                stats=made.stats,
            )
        return Outcome(manifest, cached=False, stats={**made.stats, **self.tidy(work)})

    def right(self, lake: Lake, student: str, want: Fingerprint) -> Manifest | None:
        """The manifest of the main table if all tables are finished and made of what is wanted. May be Damaged."""
        partition = self.partition(student)
        for table in self.feeds:
            lake.parts(table, partition if self.per_student else None)
        main = lake.whole(self.main, partition)
        if not main or not self._serves(main, want):
            return None
        for table in self.tables[1:]:
            if main.code_version != self.version and lake.manifest(table, partition) is None:
                continue  # the program that made the others did not know it
            found = lake.whole(table, partition)
            if not found or not self._serves(found, want):
                return None
        return main if self.is_there(lake, student) else None

    def state(self, settings: Settings, lake: Lake, student: str = "") -> State:
        """Where the artefact stands; reads manifests, and parts only if they look touched."""
        try:
            return self._state(settings, lake, student)
        except Damaged as error:
            return State("damaged", f"{error.message} -> {error.remedy}")

    def _state(self, settings: Settings, lake: Lake, student: str) -> State:
        partition = self.partition(student)
        manifest = lake.manifest(self.main, partition)
        try:
            want = self.wanted(settings, lake, student)
        except Damaged:
            raise
        except (UserError, StageError) as error:
            return State("changed" if manifest else "missing", error.message)
        if found := self.right(lake, student, want):
            return State("fresh", "" if found.fingerprint == want.digest else self.older(found, want))
        failure = lake.failure(self.main, partition)
        if failure and self._meant(failure, want):
            return State("failed", failure.message)
        if manifest is None:
            return State("missing")
        if manifest.fingerprint == want.digest:
            return State("changed", "unfinished" if not manifest.complete else "a checkpoint is gone")
        return State("changed", ", ".join(sorted(want.changed_since(manifest.inputs))) or "inputs")

    def older(self, manifest: Manifest, want: Fingerprint) -> str:
        """What an older program made differently, where that is left as it is."""
        what = ", ".join(sorted(want.changed_since(manifest.inputs)))
        if self.waits_for_person:
            return (
                f"read by an older program ({what}); srt estimate says what reading again would change and cost, "
                "srt run does it"
            )
        return (
            f"made by an older program ({what}) and left as it is, for making it again costs money: "
            f"srt run {self.asset} --renew"
        )

    def _serves(self, manifest: Manifest, want: Fingerprint) -> bool:
        if manifest.fingerprint == want.digest:
            return True
        if not (self.costs_money or self.waits_for_person):
            return False
        return bool(manifest.inputs) and self._differs_by_program_only(manifest.inputs, want)

    def _wait_for_person(self, made: Manifest | None) -> None:
        if made and made.code_version != self.version:
            raise StageError(
                f"{self.asset} was made by an older program, and its inputs have changed since: made again, it may "
                "have further rows that cost money",
                f"look at srt estimate, then srt run {self.asset}",
            )

    def _meant(self, failure: Failure, want: Fingerprint) -> bool:
        """Whether what failed is what is wanted now. An older program did not say what it wanted: then it is."""
        if failure.fingerprint == want.digest or failure.inputs is None:
            return True
        return bool(failure.inputs) and self._differs_by_program_only(failure.inputs, want)

    def _differs_by_program_only(self, before: Mapping[str, Any], want: Fingerprint) -> bool:
        # A fact that only one side knows is the program's too: settings do not come and go.
        theirs = self.facts_of_program | (want.facts.keys() ^ before.keys())
        return want.changed_since(before) <= theirs

    def _remember(self, settings: Settings, lake: Lake, student: str, error: Exception) -> None:
        known = error if isinstance(error, UserError | StageError) else explained(error)
        message = known.message if known else redact(f"{type(error).__name__}: {error}")
        try:
            want = self.wanted(settings, lake, student)
        except (UserError, StageError, OSError):  # what failed is what it would be made of
            want = None
        try:
            lake.record_failure(self.main, self.partition(student), want, message)
        except (OSError, UserError) as unwritable:  # a full disk, say: the failure itself must still be heard
            log.warning("%s: srt status will not know that it failed: %s", self.asset, unwritable)
