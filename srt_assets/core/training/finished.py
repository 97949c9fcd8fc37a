"""Finished trainings under `checkpoints/<student>/<run>/`: finding by fingerprint, verifying, deleting."""

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srt_assets.core.errors import Damaged, UserError
from srt_assets.core.files import read_own
from srt_assets.core.hashing import file_sha256
from srt_assets.core.lake import Lake
from srt_assets.core.students.checkpoint_files import inspect
from srt_assets.core.training.job import CURVE, RECORD
from srt_assets.core.untouched import untouched

# Keys that every record must have, also one of an older program.
_NEEDED = {"training_fingerprint", "finished_at", "left_out"}
ABANDONED_S = 7 * 24 * 3600.0
LOOKS = ".looks.json"


@dataclass(frozen=True)
class Finished:
    """A finished training: its directory and its record. The directory was moved here complete and never changes."""

    path: Path
    record: dict[str, Any]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The loss curve, one dict per step."""
        return [json.loads(line) for line in read_own(self.path / CURVE).splitlines()]


def directory(lake: Lake, student: str) -> Path:
    return lake.home / "checkpoints" / student


def all_of(lake: Lake, student: str) -> list[Finished]:
    """Every finished training of a student, oldest first."""
    found = [Finished(path.parent, _record(path)) for path in directory(lake, student).glob(f"[!.]*/{RECORD}")]
    # Sorted by number, because the clock may have been set between trainings; older programs wrote no number.
    return sorted(found, key=lambda f: (f.record.get("number", 0), f.record["finished_at"]))


def next_number(lake: Lake, student: str) -> int:
    """The number for a training that starts now, larger than all others."""
    return 1 + max((f.record.get("number", 0) for f in all_of(lake, student)), default=0)


def _record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_own(path))
    except ValueError as error:
        raise Damaged(path, str(error)) from None
    lacking = sorted(_NEEDED - found.keys()) if isinstance(found, dict) else ["everything"]
    if lacking:
        raise Damaged(path, f"it lacks {', '.join(lacking)}")
    return found


def verify(path: Path) -> None:
    """Damaged if a file of a finished training is missing or changed. Trainings of older programs have no sums."""
    for name, expected in _record(path / RECORD).get("sums", {}).items():
        file = path / name
        if not file.is_file():
            raise Damaged(file, "it is gone")
        if file_sha256(file) != expected:
            raise Damaged(file, "its bytes are not those that were saved (SHA-256)")


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is complete: an adapter, or a model with its tokenizer and all shards."""
    if (path / "adapter_config.json").is_file():
        return (path / "adapter_model.safetensors").is_file()
    try:
        inspect(path)
    except UserError:
        return False
    return True


def find(lake: Lake, student: str, fingerprint: str) -> Finished | None:
    """The newest complete training with this fingerprint; None if there is none."""
    made = (f for f in reversed(all_of(lake, student)) if f.record["training_fingerprint"] == fingerprint)
    return next((f for f in made if is_whole(f.path)), None)


def delete(path: Path) -> None:
    """Delete a finished training or an unfinished state."""
    # The record first, so that a partly deleted directory does not count as a finished training.
    (path / RECORD).unlink(missing_ok=True)
    shutil.rmtree(path)


def superseded(lake: Lake, student: str, keep_last: int, spare: Iterable[Path]) -> list[Path]:
    """All but the `keep_last` newest checkpoints of a student.

    Leaves out those in `spare` (the current ones) and those that a registered student uses.
    """
    spared = {p.resolve() for p in spare} | _used_by_students(lake)
    return [f.path for f in all_of(lake, student)[:-keep_last] if f.path.resolve() not in spared]


def old_states(lake: Lake, student: str) -> list[Path]:
    """Folders of unfinished trainings, not continued for a week. A state has four times the size of the weights."""
    return [folder for folder, at in _last_touched(lake, student).items() if time.time() - at > ABANDONED_S]


def abandoned_states(lake: Lake, student: str) -> list[Path]:
    """The `old_states` that may be deleted automatically, even if the clock is wrong today (see `untouched`)."""
    touched = {folder.name: at for folder, at in _last_touched(lake, student).items()}
    place = lake.home / "training" / student
    return [place / name for name in untouched(touched, ABANDONED_S, place / LOOKS)]


def _last_touched(lake: Lake, student: str) -> dict[Path, float]:
    """When each training was last started or last saved a state; a running training may take longer than a week."""
    folders = sorted(task.parent for task in (lake.home / "training" / student).glob("*/job.json"))
    return {f: max(p.stat().st_mtime for p in (f / "job.json", *f.glob("states/*"))) for f in folders}


def _used_by_students(lake: Lake) -> set[Path]:
    """The directories of the files that registered students' symlinks lead to."""
    # Hidden folders too, because a student may be in the middle of being registered again.
    links = (lake.home / "students").glob("*/*")
    return {link.resolve().parent for link in links if link.is_symlink()}
