"""Moves damaged files to `home/damaged`, where people can look at them. Damaged files are never deleted."""

from datetime import UTC, datetime
from pathlib import Path

FOLDER = "damaged"


def set_aside(home: Path, path: Path) -> Path:
    """Move a file or folder of the home to `damaged/<time>/<its path in the home>` and return the new path."""
    place = _place(home, path)
    path.rename(place)
    return place


def keep_copy(home: Path, path: Path) -> Path:
    """Hard-link a file into `damaged/<time>/` and return the new path; the file itself stays where it is."""
    place = _place(home, path)
    place.hardlink_to(path)
    return place


def _place(home: Path, path: Path) -> Path:
    within = path.relative_to(home) if path.is_relative_to(home) else Path(path.name)
    place = home / FOLDER / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}" / within
    place.parent.mkdir(parents=True, exist_ok=True)
    return place
