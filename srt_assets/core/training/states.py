"""Saved states of an unfinished training: which are complete, syncing them to disk, deleting incomplete ones."""

import shutil
from pathlib import Path

from srt_assets.core import locks

# A file that is written last into a saved state: a state without it is incomplete.
WHOLE = "whole"
# The finished checkpoint while it is written.
ASIDE = "final.writing"


def sync(directory: Path) -> None:
    """fsync a file, or every file of a directory, before it is renamed or relied on."""
    for path in [*directory.rglob("*"), directory]:
        locks.sync(path)


def last_state(directory: Path) -> Path | None:
    """The newest complete state; None if there is none."""
    whole = [p.parent for p in directory.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def drop_torn_states(directory: Path) -> None:
    """Delete incomplete states, because the Trainer's limit counts them and would delete a complete one."""
    for state in directory.glob("checkpoint-*"):
        if not (state / WHOLE).exists():
            shutil.rmtree(state)


def make_room(training: Path) -> None:
    """Delete incomplete files and states of a training on a full disk. Complete states stay."""
    for left in [*training.glob("states/checkpoint-*"), *training.glob("*.writing")]:
        if left.is_file():
            left.unlink()
        elif not (left / WHOLE).exists():
            shutil.rmtree(left, ignore_errors=True)
