"""Saved states of an unfinished training: which can be continued from, and how they get onto the disk whole."""

import shutil
from pathlib import Path

from srt_assets.core import locks

# Written last into a saved state: a process killed while saving leaves a state without it.
WHOLE = "whole"
# The finished checkpoint while it is written.
ASIDE = "final.writing"


def sync(directory: Path) -> None:
    """Have a file, or every file of a directory, on the disk itself: power may fail after the next rename."""
    for path in [*directory.rglob("*"), directory]:
        locks.sync(path)


def last_state(directory: Path) -> Path | None:
    """The newest state that was saved whole."""
    whole = [p.parent for p in directory.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def drop_torn_states(directory: Path) -> None:
    """Delete states that were saved by half: the limit on their number would count them and delete a whole one."""
    for state in directory.glob("checkpoint-*"):
        if not (state / WHOLE).exists():
            shutil.rmtree(state)


def make_room(training: Path) -> None:
    """Delete what a training could write only by half before the disk was full. What was saved whole stays."""
    for left in [*training.glob("states/checkpoint-*"), *training.glob("*.writing")]:
        if left.is_file():
            left.unlink()
        elif not (left / WHOLE).exists():
            shutil.rmtree(left, ignore_errors=True)
