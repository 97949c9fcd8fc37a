"""The stage of `student_scores`: the student's losses for every candidate.

A row holds sums and counts for four passes. The ratios are computed from them in SQL (`candidate_scores`):
loss = sum_nll / n_tokens, IFD = exp(loss(y|x) - loss(y)), r-IFD = exp(loss(x|y') - loss(x)) (Li et al. 2024, Eq. 2, 3
and 8). Importing this module loads no torch, because `srt status` uses it.
"""

from contextlib import closing
from dataclasses import replace
from typing import Any

from srt_assets.core import scoring
from srt_assets.core.errors import UserError
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.outcome import Check, Checked, Description, Made
from srt_assets.core.scoring import describe, precision, proofs
from srt_assets.core.scoring.run import ScoringRun
from srt_assets.core.scoring.store import TABLE, Store
from srt_assets.core.stage import Stage, Work
from srt_assets.core.students import checkpoints
from srt_assets.settings import Settings

COMPLETE = "every_candidate_has_a_score_or_a_status"
# A fact in fingerprints of older programs: the policy for which they settled scores in low precision.
SETTLED_FOR = "settled_for"
# A measured error stays valid while these facts of `wanted` are unchanged.
_SAME_WAY = ("student", "code", "template", "protocol", "max_length")
CANDIDATE_SLICES = ("asset=reflected_instructions", "asset=reflected_responses")


class StudentScores(Stage):
    """Summed losses of four passes for every candidate, from which IFD and r-IFD are computed."""

    asset = "student_scores"
    tables = (TABLE,)
    version = scoring.VERSION
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
            remedy="report it: scoring promises this of its rows",
        ),
    )

    def wanted(self, settings: Settings, lake: Lake, student: str = "") -> Fingerprint:
        """The fingerprint that the scores should have. UserError if the candidates or the student are missing."""
        facts = _inputs(settings, lake, student)
        facts |= settings.student.model_dump(include={"template", "protocol", "max_length", "dtype"})
        before = lake.manifest(TABLE, f"student={student}")
        if before and before.complete and (policy := before.inputs.get(SETTLED_FOR)):
            # An older program scored again for another policy. This program accepts these scores for all policies.
            older = Fingerprint.of(**facts, **{SETTLED_FOR: policy})
            if older.digest == before.fingerprint:
                return older
        return Fingerprint.of(**facts)

    def make(self, work: Work) -> Made:
        """Score missing candidates, reuse known scores, drop rows of removed candidates.

        Rows are written every few seconds, and after a kill the next run continues from them. UserError if the student
        or a setting cannot be used, StageError if a worker dies.
        """
        info = checkpoints.get(work.lake, work.student)
        before = work.lake.manifest(TABLE, work.partition)
        same = before and not work.want.changed_since(before.inputs).intersection(_SAME_WAY)
        errors = precision.of_stats(before.stats) if before and same else {}
        way = scoring.way(work.settings, info, work.settings.student.dtype)
        with closing(Store(work.lake, work.student, way)) as store:
            run = ScoringRun(work, info, store, errors)
            run.score()
            return Made({TABLE: [store.write()]}, run.stats())

    def describe(self, lake: Lake, student: str = "") -> Description:
        """Statuses, ratios, and how this student is scored (its proofs)."""
        found = describe.describe(lake, student)
        manifest = lake.manifest(TABLE, f"student={student}")
        scored_by = str(manifest.inputs.get("student", "")) if manifest else ""
        proved = "; ".join(proofs.told(lake.home, scored_by)) if scored_by else ""
        return replace(found, numbers={**found.numbers, "forward_passes": proved}) if proved else found

    def check(self, lake: Lake, student: str = "") -> list[Checked]:
        found = describe.faults(lake, student)
        return [Checked(COMPLETE, not any(found.values()), found)]


STAGE = StudentScores()


def can_be_made(lake: Lake) -> bool:
    """Whether the candidates are complete, so that a student has something to score."""
    found = [lake.manifest("candidates", partition) for partition in CANDIDATE_SLICES]
    return all(manifest and manifest.complete for manifest in found)


def _inputs(settings: Settings, lake: Lake, student: str) -> dict[str, Any]:
    """The facts about candidates, student and scoring code. UserError if the candidates are missing or unfinished."""
    hashes = []
    for partition in CANDIDATE_SLICES:
        manifest = lake.manifest("candidates", partition)
        if manifest is None or not manifest.complete:
            asset = partition.partition("=")[2]
            raise UserError(f"{asset} is missing or unfinished, so there is nothing to score", f"srt run {asset}")
        hashes.append(manifest.content_hash)
    info = checkpoints.get(lake, student)
    return {"candidates": hashes, "student": info.fingerprint, "code": scoring.version(settings, info)}
