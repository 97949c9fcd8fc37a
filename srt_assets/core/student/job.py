"""One run of scoring: hands chunks to the devices, puts rows down every few seconds, counts, reports progress."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from srt_assets.core import reserve
from srt_assets.core.errors import is_disk_full
from srt_assets.core.selection.policies import policy_rows
from srt_assets.core.sql import models
from srt_assets.core.stage import Work
from srt_assets.core.student import chat, checkpoints, precision
from srt_assets.core.student.encoding import Texts
from srt_assets.core.student.store import TABLE, Store
from srt_assets.settings import Settings

if TYPE_CHECKING:
    from srt_assets.core.student.chunks import Scored, Spec
    from srt_assets.core.student.proof import Proof

log = logging.getLogger(__name__)

# Part of every row: change it when the same texts would get other numbers, and all are scored again.
VERSION = "2"
# The same for students that cap their logits: until this one, the cap was overlooked where it bent little.
VERSION_CAPPED = "3"
# And for those whose chat template writes another prompt before an answer than its generation prompt, which was taken.
VERSION_PROMPTED = "4"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_FLUSH_S = 12.0
# Then all rows are written, not the new ones only.
_SETTLE_FLUSH_S = 60.0
# Published at every commit: 3000 parts, those of a night, took 6 s.
_MOST_PARTS = 50


def max_length(settings: Settings, info: checkpoints.StudentInfo) -> int:
    """Longest sequence in tokens: the setting, or what the student has positions for if that is less."""
    return min(settings.student.max_length, info.max_positions or settings.student.max_length)


def version(settings: Settings, info: checkpoints.StudentInfo) -> str:
    """The version of the scoring code that this student's scores must be of. UserError if it has no usable template."""
    if settings.student.template == "chat" and not chat.of_student(info.slug, info.path, info.fingerprint).usual:
        return VERSION_PROMPTED
    return VERSION_CAPPED if info.caps_logits else VERSION


class Job:
    """One run of the stage: counts, pace, and when to put rows down."""

    def __init__(self, work: Work, info: checkpoints.StudentInfo, store: Store) -> None:
        self.work, self.settings, self.info, self.store = work, work.settings, info, store
        self.known = store.counts()
        self.counts: Counter[str] = Counter()
        self.facts: dict[str, int | float | str] = {}
        self.proofs: list[Proof] = []
        self.parts = [store.write_reused()]
        self.samples: list[str] = []
        self.rows: list[dict] = []
        self.started = self.flushed = time.monotonic()
        self.done = self.ticked = 0

    def score(self) -> None:
        """Score what is missing; then, if the device computes in low precision, check what that could decide."""
        if self.known["todo"]:
            spec, names = self._spec(self.settings.student.dtype)
            if spec.dtype != "float32":
                models.check_rule()  # hours later the close calls are settled by it
            self.facts = {"devices": ",".join(names), "dtype": spec.dtype}
            try:
                for scored in _scored(spec, names, self.store.missing(), self._tick):
                    self._hear(scored.proof)
                    self.counts.update(scored.counts)
                    self.done += len(scored.samples)
                    self.rows += scored.rows
                    self.samples += scored.samples
                    self._tick(0)
                    if time.monotonic() - self.flushed >= _FLUSH_S:
                        self._flush()
            finally:  # an error or Ctrl-C keeps what is done
                self._flush()
        policies = policy_rows(self.settings.selection, self.settings.project.seed, self.store.student)
        self.facts |= precision.settle(self.store, policies, self._rescore)

    def _rescore(self, samples: list[str]) -> None:
        """Scores of these samples in fp32, in place of what the store has."""
        if not samples:
            return
        started, done = time.monotonic(), 0

        def report(tokens: int = 0) -> None:
            facts = {"eta_s": (len(samples) - done) * (time.monotonic() - started) / done} if done else {}
            self.work.progress(done, len(samples), "records", dtype="float32", **facts)

        try:
            for scored in _scored(*self._spec("fp32"), self.store.texts_of(samples), report):
                self._hear(scored.proof)
                self.store.remember(scored.rows)
                done += len(scored.samples)
                report()
                if time.monotonic() - self.flushed >= _SETTLE_FLUSH_S:
                    self._flush_all()
        finally:
            self._flush_all()

    def _spec(self, dtype: str) -> tuple["Spec", list[str]]:
        """What the workers need, and the devices; `auto` is resolved here, so that all of them agree."""
        from srt_assets.core.student import devices
        from srt_assets.core.student.chunks import Spec

        chosen = self.settings.student
        resolved = devices.resolve_dtype(dtype, chosen.devices)
        names = devices.resolve_devices(chosen.devices, self.info.n_parameters * resolved.itemsize)
        spec = Spec(
            path=self.info.path,
            max_length=max_length(self.settings, self.info),
            dtype=str(resolved).removeprefix("torch."),
            **chosen.model_dump(include={"template", "protocol", "token_budget"}),
            cores=devices.cores_per_worker(names),
            home=self.store.lake.home,
            fingerprint=self.info.fingerprint,
        )
        return spec, names

    def _hear(self, proof: "Proof") -> None:
        """Say once if the student is not asked in the fast way, and remember what was measured."""
        if proof in self.proofs:
            return
        self.proofs.append(proof)
        if proof.why:
            log.warning("student %s is scored by its %s, for %s", self.info.slug, proof.path, proof.why)
        if len(self.proofs) == 1:
            measured = {f"proof_{name}": value for name, value in proof.measured.items() if value is not None}
            shared = "shared" if proof.ways.prefixes else "read each time"
            self.facts |= {"forward_pass": proof.path, "beginnings": shared, **measured}

    def _flush(self) -> None:
        """Put down what was scored; on a full disk into the room that is kept for it, before the run ends."""
        try:
            self._put()
        except Exception as error:
            if is_disk_full(error):
                reserve.give_back(self.store.lake.home)
                self._put()
            raise

    def _put(self) -> None:
        if self.rows:
            parts = [*self.parts, self.store.write_scored(self.samples, self.rows)]
            self._commit([self.store.merge(parts)] if len(parts) > _MOST_PARTS else parts)
            self.rows, self.samples = [], []

    def _flush_all(self) -> None:
        """Every row anew: those that take the place of others cannot be added as a part."""
        self._commit([self.store.write_all()])

    def _commit(self, parts: list[str]) -> None:
        lake, partition = self.store.lake, self.store.partition
        lake.commit(TABLE, parts, fingerprint=self.work.want, code_version=VERSION, partition=partition, complete=False)
        self.parts = parts
        self.flushed = time.monotonic()

    def _tick(self, tokens: int) -> None:
        self.ticked += tokens
        seconds = max(time.monotonic() - self.started, 1e-9)
        total = self.known["samples_todo"]
        facts = {"tokens_per_s": self.ticked / seconds}
        if self.done:
            rate = self.done / seconds
            facts |= {"records_per_s": rate, "eta_s": (total - self.done) / rate}
        self.work.progress(self.done, total, "records", **facts)

    def stats(self) -> dict[str, int | float | str]:
        seconds = time.monotonic() - self.started
        names = ("passes", "passes_shared", "tokens", "truncated", "failed", "out_of_memory")
        found: dict[str, int | float | str] = {
            "candidates": self.known["candidates"],
            "candidates_scored": self.counts["candidates"],
            "candidates_reused": self.known["reused"],
            "records_scored": self.done,
            **{name: self.counts[name] for name in names},
            **self.facts,
            "scoring_seconds": round(seconds, 3),
        }
        if self.done:
            found["records_per_s"] = round(self.done / seconds, 3)
            found["tokens_per_s"] = round(self.counts["tokens"] / seconds, 1)
        return found


def _scored(
    spec: "Spec", names: list[str], records: Iterable[tuple[str, str, Texts]], tick: Callable[[int], object]
) -> "Iterator[Scored]":
    """Score these on the devices, in chunks of a size that is learned on the way."""
    from srt_assets.core.student import workers  # heavy: loads torch
    from srt_assets.core.student.pace import Pace, chunks

    pace = Pace()
    for scored in workers.score_chunks(spec, names, chunks(records, pace), tick):
        pace.learn(scored.characters, scored.seconds)
        yield scored
