"""The stage behind `student_scores`: what the student thinks of every candidate.

A row holds sums and counts for four passes; every published ratio is arithmetic over them, done in SQL
(`candidate_scores`): loss = sum_nll / n_tokens, IFD = exp(loss(y|x) - loss(y)), r-IFD = exp(loss(x|y') - loss(x))
(Li et al. 2024, Eq. 2, 3 and 8). Importing this module loads no torch: `srt status` asks it for fingerprints.
"""

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from srt_assets.core.errors import UserError
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.outcome import Check, Checked, Description, Made
from srt_assets.core.selection.policies import policy_rows
from srt_assets.core.stage import Stage, Work
from srt_assets.core.student import checkpoints, describe
from srt_assets.core.student.job import DTYPES, VERSION, Job, max_length, version
from srt_assets.core.student.store import TABLE, Store, Way
from srt_assets.settings import Settings

COMPLETE = "every_candidate_has_a_score_or_a_status"
CANDIDATE_SLICES = ("asset=reflected_instructions", "asset=reflected_responses")


class StudentScores(Stage):
    """Summed losses of four passes for every candidate: the numbers IFD and r-IFD are made of."""

    asset = "student_scores"
    tables = (TABLE,)
    version = VERSION
    needs = ("reflected_responses", "student_checkpoint")
    group = "scores"
    kinds = frozenset({"pytorch", "parquet"})
    per_student = True
    pool = "device"
    checks = (
        Check(
            COMPLETE,
            "One row a candidate; each pass has a finite loss over at least one token, or says why not.",
            blocking=True,
        ),
    )

    def wanted(self, settings: Settings, lake: Lake, student: str = "") -> Fingerprint:
        """Raises UserError if the candidates or the student are missing."""
        before = lake.manifest(TABLE, f"student={student}")
        return _fingerprint(settings, student, _inputs(settings, lake, student), before.stats if before else {})

    def make(self, work: Work) -> Made:
        """Score what is missing, keep what is known, forget what is gone.

        Rows are put down every few seconds; after a kill the next run goes on from them. Raises UserError if the
        student or a setting cannot work, StageError if a worker dies.
        """
        inputs = _inputs(work.settings, work.lake, work.student)
        info = checkpoints.get(work.lake, work.student)
        with closing(Store(work.lake, work.student, _way(work.settings, info))) as store:
            job = Job(work, info, store)
            job.score()
            stats = job.stats()
            parts = [store.write_all()]
        return Made({TABLE: parts}, stats, _fingerprint(work.settings, work.student, inputs, stats))

    def describe(self, lake: Lake, student: str = "") -> Description:
        return describe.describe(lake, student)

    def check(self, lake: Lake, student: str = "") -> list[Checked]:
        found = describe.faults(lake, student)
        return [Checked(COMPLETE, not any(found.values()), found)]


STAGE = StudentScores()


def can_be_made(lake: Lake) -> bool:
    """True if the teacher side is there and finished, so that a student has something to score."""
    found = [lake.manifest("candidates", partition) for partition in CANDIDATE_SLICES]
    return all(manifest and manifest.complete for manifest in found)


def _inputs(settings: Settings, lake: Lake, student: str) -> dict[str, Any]:
    """What is scored, and by whom. Scoring takes hours: asked before it, for they may change meanwhile."""
    hashes = []
    for partition in CANDIDATE_SLICES:
        manifest = lake.manifest("candidates", partition)
        if manifest is None or not manifest.complete:
            asset = partition.partition("=")[2]
            raise UserError(f"{asset} is missing or unfinished: there is nothing to score", f"srt run {asset}")
        hashes.append(manifest.content_hash)
    info = checkpoints.get(lake, student)
    return {"candidates": hashes, "student": info.fingerprint, "code": version(settings, info)}


def _fingerprint(settings: Settings, student: str, inputs: Mapping[str, Any], stats: Mapping) -> Fingerprint:
    # Scores in low precision are as exact as the policy needs them: another one has other close calls.
    rows = policy_rows(settings.selection, settings.project.seed, student)
    low = bool(stats.get("low_precision_records"))
    settled = {"settled_for": next(row["policy_fingerprint"] for row in rows if row["active"])} if low else {}
    student_settings = settings.student.model_dump(include={"template", "protocol", "max_length", "dtype"})
    return Fingerprint.of(**inputs, **student_settings, **settled)


def _way(settings: Settings, info: checkpoints.StudentInfo) -> Way:
    chosen = settings.student.dtype
    # "auto" takes what is there, and full precision serves every wish.
    dtypes = tuple(DTYPES.values()) if chosen == "auto" else tuple(dict.fromkeys((DTYPES[chosen], "float32")))
    return Way(
        student_fingerprint=info.fingerprint,
        **settings.student.model_dump(include={"template", "protocol"}),
        max_length=max_length(settings, info),
        scoring_version=version(settings, info),
        dtypes=dtypes,
    )
