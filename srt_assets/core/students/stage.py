"""The stage of the asset `student_checkpoint`: one row per student with its source, size and content fingerprint."""

from dataclasses import asdict
from typing import Any

from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.outcome import Description, Made
from srt_assets.core.stage import Stage, Work
from srt_assets.core.students import checkpoints, watch
from srt_assets.core.students.folders import RETIRED
from srt_assets.settings import Settings

TABLE = "students"


class StudentCheckpoint(Stage):
    """The student model that scores, selects and is finetuned: config, tokenizer and weights, checked and hashed."""

    asset = "student_checkpoint"
    tables = (TABLE,)
    version = "1"
    group = "students"
    kinds = frozenset({"huggingface"})
    per_student = True

    def prepare(self, settings: Settings, lake: Lake, student: str) -> None:
        """Register a student of the watched folder, or refresh it."""
        watch.register(settings, lake, student)

    def wanted(self, settings: Settings, lake: Lake, student: str = "") -> Fingerprint:
        info = checkpoints.get(lake, student)
        known = {name: getattr(info, name) for name in ("source", "revision", "generation")}
        return Fingerprint.of(student=info.fingerprint, code=self.version, **known)

    def is_outdated(self, lake: Lake, student: str) -> bool:
        """Whether the row still has a time of retirement, because the command that brought it back was killed."""
        manifest = lake.manifest(TABLE, f"student={student}")
        return bool(manifest and manifest.stats.get(RETIRED))

    def make(self, work: Work) -> Made:
        info = checkpoints.get(work.lake, work.student)
        row = asdict(info) | {"student": work.student, "student_fingerprint": info.fingerprint}
        part = work.lake.write_part(TABLE, [row], work.partition)
        return Made({TABLE: [part]}, {"n_parameters": info.n_parameters})

    def describe(self, lake: Lake, student: str = "") -> Description:
        """Size, architecture and identity of the student."""
        info = checkpoints.get(lake, student)
        shown = ("weights_bytes", "vocab_size", "architecture", "fingerprint", "generation")
        facts: dict[str, Any] = {name: getattr(info, name) for name in shown} | {"source": info.source_now}
        return Description({"parameters": info.n_parameters, **facts})


STAGE = StudentCheckpoint()
