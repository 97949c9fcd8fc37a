"""`srt prune`: deletes old finetuned checkpoints and training states.

Every training cleans up after itself. This is for other cases: `training.keep_last` was lowered, or a student is no
longer trained.
"""

from dataclasses import dataclass
from pathlib import Path

from srt_assets.core.files import folder_size
from srt_assets.core.lake import Lake
from srt_assets.core.training import finished, results
from srt_assets.core.training.results import TABLE
from srt_assets.settings import Settings


@dataclass(frozen=True)
class Waste:
    """A directory that nothing needs: its size in bytes, and why it may be deleted."""

    path: Path
    student: str
    size: int
    why: str


def find(settings: Settings, lake: Lake) -> list[Waste]:
    """The directories that `remove` would delete now. Deletes nothing."""
    return [waste for student in _trained(lake) for waste in _of(settings, lake, student)]


def remove(settings: Settings, lake: Lake) -> tuple[list[Waste], list[str]]:
    """Find and delete. Returns the deleted directories, and the students that were skipped because of a training."""
    gone: list[Waste] = []
    busy: list[str] = []
    for student in _trained(lake):
        try:
            with lake.lock(TABLE, f"student={student}", wait=False):
                for waste in _of(settings, lake, student):
                    finished.delete(waste.path)
                    gone.append(waste)
        except BlockingIOError:
            busy.append(student)
    return gone, busy


def _of(settings: Settings, lake: Lake, student: str) -> list[Waste]:
    keep = settings.training.keep_last
    old = finished.superseded(lake, student, keep, results.current(lake, student))
    states = finished.old_states(lake, student)
    return [
        *(Waste(path, student, folder_size(path), f"older than the newest {keep}") for path in old),
        *(Waste(path, student, folder_size(path), "unfinished, untouched for a week") for path in states),
    ]


def _trained(lake: Lake) -> list[str]:
    return sorted({p.name for place in ("checkpoints", "training") for p in (lake.home / place).glob("[!.]*")})
