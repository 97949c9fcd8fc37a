"""The stage behind `student_scores`: what the student thinks of every candidate.

A row holds sums and counts for four passes; every published ratio is arithmetic over them, done in SQL
(`candidate_scores`): loss = sum_nll / n_tokens, IFD = exp(loss(y|x) - loss(y)), r-IFD = exp(loss(x|y') - loss(x))
(Li et al. 2024, Eq. 2, 3 and 8). Importing this module loads no torch: `srt status` asks it for fingerprints.
"""

from collections.abc import Mapping
from typing import Any

from srt_assets.core.errors import UserError
from srt_assets.core.hashing import fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.outcome import Outcome
from srt_assets.core.progress import Progress, silent
from srt_assets.core.selection.policies import policy_rows
from srt_assets.core.student import checkpoints
from srt_assets.core.student.job import DTYPES, VERSION, Job, max_length
from srt_assets.core.student.store import TABLE, Store, Way
from srt_assets.settings import Settings

CANDIDATE_SLICES = ("asset=reflected_instructions", "asset=reflected_responses")


def wanted(settings: Settings, lake: Lake, student: str) -> str:
    """The fingerprint the scores should have now. Raises UserError if the candidates or the student are missing."""
    before = lake.manifest(TABLE, f"student={student}")
    return _fingerprint(settings, student, _inputs(lake, student), before.stats if before else {})


def can_be_made(lake: Lake) -> bool:
    """True if the teacher side is there and finished, so that a student has something to score."""
    found = [lake.manifest("candidates", partition) for partition in CANDIDATE_SLICES]
    return all(manifest is not None and manifest.complete for manifest in found)


def _inputs(lake: Lake, student: str) -> dict[str, Any]:
    """What is scored, and by whom. Scoring takes hours: asked before it, for they may change meanwhile."""
    hashes = []
    for partition in CANDIDATE_SLICES:
        manifest = lake.manifest("candidates", partition)
        if manifest is None or not manifest.complete:
            asset = partition.partition("=")[2]
            raise UserError(f"{asset} is missing or unfinished: there is nothing to score", f"srt run {asset}")
        hashes.append(manifest.content_hash)
    return {"candidates": hashes, "student": checkpoints.get(lake, student).fingerprint}


def _fingerprint(settings: Settings, student: str, inputs: Mapping[str, Any], stats: Mapping) -> str:
    # Scores in low precision are as exact as the policy needs them: another one has other close calls.
    rows = policy_rows(settings.selection, settings.project.seed, student)
    low = bool(stats.get("low_precision_records"))
    settled = {"settled_for": next(row["policy_fingerprint"] for row in rows if row["active"])} if low else {}
    return fingerprint(
        **inputs,
        template=settings.student.template,
        protocol=settings.student.protocol,
        max_length=settings.student.max_length,
        dtype=settings.student.dtype,
        code=VERSION,
        **settled,
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
        inputs = _inputs(lake, student)
        info = checkpoints.get(lake, student)
        store = Store(lake, student, _way(settings, info))
        try:
            job = Job(settings, info, store, want, progress)
            job.score()
            stats = job.stats()
            manifest = lake.commit(
                TABLE,
                [store.write_all()],
                fingerprint=_fingerprint(settings, student, inputs, stats),
                code_version=VERSION,
                partition=partition,
                stats=stats,
            )
        finally:
            store.close()
    return Outcome(manifest, cached=False, stats=stats)


def _way(settings: Settings, info: checkpoints.StudentInfo) -> Way:
    chosen = settings.student.dtype
    # "auto" takes what is there, and full precision serves every wish.
    dtypes = tuple(DTYPES.values()) if chosen == "auto" else tuple(dict.fromkeys((DTYPES[chosen], "float32")))
    return Way(
        student_fingerprint=info.fingerprint,
        template=settings.student.template,
        protocol=settings.student.protocol,
        max_length=max_length(settings, info),
        scoring_version=VERSION,
        dtypes=dtypes,
    )
