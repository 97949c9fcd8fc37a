"""Finished trainings under `checkpoints/<student>/<run>/`: found by what they were made from, kept, thinned out."""

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srt_assets.core.lake import Lake
from srt_assets.core.training.job import CURVE, RECORD

ABANDONED_S = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Finished:
    """A finished training: its directory and its record. It was moved in whole and is never written again."""

    path: Path
    record: dict[str, Any]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The loss curve, one dict a step."""
        return [json.loads(line) for line in (self.path / CURVE).read_text().splitlines()]


def directory(lake: Lake, student: str) -> Path:
    return lake.home / "checkpoints" / student


def all_of(lake: Lake, student: str) -> list[Finished]:
    """Every finished training of a student, oldest first."""
    found = [
        Finished(path.parent, json.loads(path.read_text())) for path in directory(lake, student).glob(f"[!.]*/{RECORD}")
    ]
    return sorted(found, key=lambda f: f.record["finished_at"])


def find(lake: Lake, student: str, fingerprint: str) -> Finished | None:
    """The newest finished training that was made from exactly these inputs."""
    return next((f for f in reversed(all_of(lake, student)) if f.record["training_fingerprint"] == fingerprint), None)


def thin_out(lake: Lake, student: str, keep_last: int, spare: Iterable[Path]) -> list[Path]:
    """Delete the checkpoints of a student that `superseded` names, and say which."""
    gone = superseded(lake, student, keep_last, spare)
    for path in gone:
        # The record first: a directory whose deletion was cut short is no finished training.
        (path / RECORD).unlink()
        shutil.rmtree(path)
    return gone


def superseded(lake: Lake, student: str, keep_last: int, spare: Iterable[Path]) -> list[Path]:
    """All but the `keep_last` newest checkpoints of a student.

    Never those in `spare` (the current ones) nor any that a registered student consists of.
    """
    spared = {p.resolve() for p in spare} | _used_by_students(lake)
    return [f.path for f in all_of(lake, student)[:-keep_last] if f.path.resolve() not in spared]


def drop_old_states(lake: Lake, student: str) -> list[Path]:
    """Delete the states that `old_states` names, and say which."""
    gone = old_states(lake, student)
    for path in gone:
        shutil.rmtree(path)
    return gone


def old_states(lake: Lake, student: str) -> list[Path]:
    """Unfinished states of trainings that nobody has continued for a week: settings that did not come back.

    A state holds the weights four times over.
    """
    tasks = (lake.home / "training" / student).glob("*/job.json")
    return sorted(task.parent for task in tasks if time.time() - _last_touched(task) > ABANDONED_S)


def _last_touched(task: Path) -> float:
    """When the training was last started, or has last saved a state: it may run for longer than a week."""
    return max(path.stat().st_mtime for path in (task, *task.parent.glob("states/*")))


def _used_by_students(lake: Lake) -> set[Path]:
    """Students are links to files: the directories those files lie in."""
    # Hidden folders too: one that is being registered anew.
    links = (lake.home / "students").glob("*/*")
    return {link.resolve().parent for link in links if link.is_symlink()}
