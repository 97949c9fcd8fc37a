"""Damaged files are never deleted: they are moved out of the way, under `home/damaged`, for people to look at."""

from datetime import UTC, datetime
from pathlib import Path

FOLDER = "damaged"


def set_aside(home: Path, path: Path) -> Path:
    """Move a file or folder of the home to `damaged/<time>/` and give its new place. Its path in the home is kept."""
    place = _place(home, path)
    path.rename(place)
    return place


def keep_copy(home: Path, path: Path) -> Path:
    """The same for a file that stays where it is: another link to it."""
    place = _place(home, path)
    place.hardlink_to(path)
    return place


def _place(home: Path, path: Path) -> Path:
    within = path.relative_to(home) if path.is_relative_to(home) else Path(path.name)
    place = home / FOLDER / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}" / within
    place.parent.mkdir(parents=True, exist_ok=True)
    return place
