"""The stage behind `student_scores`: what the student thinks of every candidate.

A row holds sums and counts for four passes; every published ratio is arithmetic over them, done in SQL
(`candidate_scores`): loss = sum_nll / n_tokens, IFD = exp(loss(y|x) - loss(y)), r-IFD = exp(loss(x|y') - loss(x))
(Li et al. 2024, Eq. 2, 3 and 8). Importing this module loads no torch: `srt status` asks it for fingerprints.
"""

import time
from collections import Counter

from srt_assets.core.errors import UserError
from srt_assets.core.hashing import fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.outcome import Outcome
from srt_assets.core.progress import Progress, silent
from srt_assets.core.student import checkpoints
from srt_assets.core.student.store import TABLE, Store, Way
from srt_assets.settings import Settings

# Part of every row: change it when the same texts would get other numbers, and all are scored again.
VERSION = "1"
CANDIDATE_SLICES = ("asset=reflected_instructions", "asset=reflected_responses")
_FLUSH_S = 12.0
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def wanted(settings: Settings, lake: Lake, student: str) -> str:
    """The fingerprint the scores should have now. Raises UserError if the candidates or the student are missing."""
    hashes = []
    for partition in CANDIDATE_SLICES:
        manifest = lake.manifest("candidates", partition)
        if manifest is None or not manifest.complete:
            asset = partition.partition("=")[2]
            raise UserError(f"{asset} is missing or unfinished: there is nothing to score", f"srt run {asset}")
        hashes.append(manifest.content_hash)
    return fingerprint(
        candidates=hashes,
        student=checkpoints.get(lake, student).fingerprint,
        template=settings.student.template,
        protocol=settings.student.protocol,
        max_length=settings.student.max_length,
        dtype=settings.student.dtype,
        code=VERSION,
    )


def run(settings: Settings, lake: Lake, student: str, progress: Progress = silent) -> Outcome:
    """Bring the student's rows up to date: score what is missing, keep what is known, forget what is gone.

    Rows are put down every few seconds; after a kill the next run goes on from them. Raises UserError if the student
    or a setting cannot work, StageError if a worker dies.
    """
    partition = f"student={student}"
    with lake.lock(TABLE, partition):
        want = wanted(settings, lake, student)
        manifest = lake.manifest(TABLE, partition)
        if manifest and lake.is_current(TABLE, want, partition):
            return Outcome(manifest, cached=True)
        info = checkpoints.get(lake, student)
        store = Store(lake, student, _way(settings, info))
        try:
            job = _Job(settings, info, store, want, progress)
            job.score()
            stats = job.stats()
            manifest = lake.commit(
                TABLE,
                [store.write_all()],
                fingerprint=want,
                code_version=VERSION,
                partition=partition,
                stats=stats,
            )
        finally:
            store.close()
    return Outcome(manifest, cached=False, stats=stats)


def max_length(settings: Settings, info: checkpoints.StudentInfo) -> int:
    """Longest sequence in tokens: the setting, or what the student has positions for if that is less."""
    return min(settings.student.max_length, info.max_positions or settings.student.max_length)


def _way(settings: Settings, info: checkpoints.StudentInfo) -> Way:
    chosen = settings.student.dtype
    # "auto" takes what is there, and full precision serves every wish.
    dtypes = tuple(_DTYPES.values()) if chosen == "auto" else tuple(dict.fromkeys((_DTYPES[chosen], "float32")))
    return Way(
        student_fingerprint=info.fingerprint,
        template=settings.student.template,
        protocol=settings.student.protocol,
        max_length=max_length(settings, info),
        scoring_version=VERSION,
        dtypes=dtypes,
    )


class _Job:
    """One run's scoring: counts, pace, and when to put rows down."""

    def __init__(
        self, settings: Settings, info: checkpoints.StudentInfo, store: Store, want: str, progress: Progress
    ) -> None:
        self.settings, self.info, self.store, self.want, self.progress = settings, info, store, want, progress
        self.known = store.counts()
        self.counts: Counter[str] = Counter()
        self.facts: dict[str, int | float | str] = {}
        self.parts = [store.write_reused()]
        self.samples: list[str] = []
        self.rows: list[dict] = []
        self.started = self.flushed = time.monotonic()
        self.done = self.ticked = 0

    def score(self) -> None:
        if not self.known["todo"]:
            return
        from srt_assets.core.student import devices, workers  # heavy: loads torch
        from srt_assets.core.student.chunks import Spec
        from srt_assets.core.student.pace import Pace

        chosen = self.settings.student
        dtype = devices.resolve_dtype(chosen.dtype, "auto" if chosen.devices == "auto" else chosen.devices)
        names = devices.resolve_devices(chosen.devices, self.info.n_parameters * dtype.itemsize)
        self.facts = {"devices": ",".join(names), "dtype": devices.dtype_name(dtype)}
        spec = Spec(
            path=self.info.path,
            template=chosen.template,
            protocol=chosen.protocol,
            max_length=max_length(self.settings, self.info),
            dtype=chosen.dtype,
            token_budget=chosen.token_budget,
            threads=devices.threads_per_worker(names),
        )
        pace = Pace()
        try:
            for scored in workers.score_chunks(spec, names, pace.chunks(self.store), self._tick):
                pace.learn(scored.characters, scored.seconds)
                self.counts.update(scored.counts)
                self.done += len(scored.samples)
                self.rows += scored.rows
                self.samples += scored.samples
                self._report()
                if time.monotonic() - self.flushed >= _FLUSH_S:
                    self._flush()
        finally:  # an error or Ctrl-C keeps what is done
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            self.parts.append(self.store.write_scored(self.samples, self.rows))
            self.store.lake.commit(
                TABLE,
                self.parts,
                fingerprint=self.want,
                code_version=VERSION,
                partition=self.store.partition,
                complete=False,
            )
            self.rows, self.samples = [], []
        self.flushed = time.monotonic()

    def _tick(self, tokens: int) -> None:
        self.ticked += tokens
        self._report()

    def _report(self) -> None:
        seconds = max(time.monotonic() - self.started, 1e-9)
        total = self.known["samples_todo"]
        facts = {"tokens_per_s": self.ticked / seconds}
        if self.done:
            rate = self.done / seconds
            facts |= {"records_per_s": rate, "eta_s": (total - self.done) / rate}
        self.progress(self.done, total, "records", **facts)

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
