"""One run of scoring: sends chunks to the devices, writes rows every few seconds, counts, reports progress."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from srt_assets.core import reserve, scoring
from srt_assets.core.errors import is_disk_full
from srt_assets.core.scoring import precision
from srt_assets.core.scoring.precision import Error
from srt_assets.core.scoring.store import TABLE, Store
from srt_assets.core.sql import models
from srt_assets.core.stage import Work
from srt_assets.core.students.checkpoints import StudentInfo

if TYPE_CHECKING:
    from srt_assets.core.scoring.proof import Proof

log = logging.getLogger(__name__)

_FLUSH_S = 12.0
# Seconds between writes while scores are replaced, because all rows are written then.
_SETTLE_FLUSH_S = 60.0
# More parts than this are merged: each commit publishes all parts, and publishing 3,000 (one night) took 6 s.
_MOST_PARTS = 50


class ScoringRun:
    """One run of the stage: counts, speed, and when rows are written."""

    def __init__(self, work: Work, info: StudentInfo, store: Store, errors: precision.Errors) -> None:
        self.work, self.settings, self.info, self.store = work, work.settings, info, store
        # Errors of low precision, measured by earlier runs and by this one.
        self.errors = dict(errors)
        self.known = store.counts()
        self.counts: Counter[str] = Counter()
        self.facts: dict[str, int | float | str] = {}
        self.proofs: list[Proof] = []
        self.parts = [store.write_reused()]
        self.samples: list[str] = []
        self.rows: list[dict] = []
        self.started = self.flushed = time.monotonic()
        self.done = self.ticked = self.rescored = 0

    def score(self) -> None:
        """Score missing candidates. In low precision, also measure the error and repeat non-finite scores in fp32."""
        if self.known["todo"]:
            spec, names = scoring.prepare(self.settings, self.info, self.store.lake.home, self.settings.student.dtype)
            if spec.dtype != scoring.DTYPES[scoring.EXACT]:
                models.check(models.RATIOS)  # fail now: this model is needed after hours, to measure the error
            self.facts = {"devices": ",".join(names), "dtype": spec.dtype}
            try:
                for scored in scoring.score(spec, names, self.store.missing(), self._tick):
                    self._hear(scored.proof)
                    self.counts.update(scored.counts)
                    self.done += len(scored.samples)
                    self.rows += scored.rows
                    self.samples += scored.samples
                    self._tick(0)
                    if time.monotonic() - self.flushed >= _FLUSH_S:
                        self._flush()
            finally:  # after an error or Ctrl-C, keep the finished rows
                self._flush()
        if n := self.store.choose("not_finite", self.store.samples(precision.NOT_FINITE)):
            self._rescore("not_finite", n)
        for dtype in scoring.DTYPES.values():
            self._measure(dtype)
        if self.rescored:
            self.facts["rescored_in_fp32"] = self.rescored
        if low := self.store.count(precision.LOW):
            self.facts |= {"low_precision_records": low, **precision.as_stats(self.errors)}

    def _measure(self, dtype: str) -> None:
        """Measure the error of this precision on MEASURED_RECORDS records, less those measured before.

        Scores the records again in fp32. The fp32 scores stay.
        """
        if dtype == scoring.DTYPES[scoring.EXACT]:
            return
        before, con = self.errors.get(dtype, Error()), self.store.con
        left = max(0, precision.MEASURED_RECORDS - before.records)
        if not (n := self.store.choose("measured", self.store.samples(f"dtype = '{dtype}'", at_most=left))):
            return
        con.execute(f"CREATE OR REPLACE TABLE low AS FROM done WHERE dtype = '{dtype}'")
        low = self.store.rows("low", "d.content_key IS NOT NULL AND sample_id IN (FROM measured)")
        exact = self.store.rows("done", "d.dtype = 'float32'")

        def measured() -> None:
            self.errors[dtype] = before.also(precision.measured(con, low, exact))

        self._rescore("measured", n, measured)

    def _rescore(self, chosen: str, n: int, before_flush: Callable[[], None] = lambda: None) -> None:
        """Score the `n` samples in the table `chosen` in fp32 and replace their scores in the store."""
        home, records = self.store.lake.home, self.store.texts_of(chosen)
        try:
            for scored in scoring.score_in_fp32(self.settings, self.info, home, records, n, self.work.progress):
                self._hear(scored.proof)
                self.store.remember(scored.rows)
                self.rescored += len(scored.samples)
                if time.monotonic() - self.flushed >= _SETTLE_FLUSH_S:
                    before_flush()
                    self._flush_all()
        finally:
            before_flush()
            self._flush_all()

    def _hear(self, proof: "Proof") -> None:
        """Log once if the student is not scored the fast way, and keep the measured differences."""
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
        """Write the new rows. On a full disk, write them into the reserved space, then raise the error."""
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
        """Write all rows as a new part, because replaced scores cannot be appended."""
        self._commit([self.store.write()])

    def _commit(self, parts: list[str]) -> None:
        self.store.lake.commit(
            TABLE,
            parts,
            fingerprint=self.work.want,
            code_version=scoring.VERSION,
            partition=self.store.partition,
            complete=False,
            # The errors are stored, because the records they were measured on now have fp32 scores.
            stats=precision.as_stats(self.errors),
        )
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
