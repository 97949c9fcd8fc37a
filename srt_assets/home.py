"""Finds the home, with an error if there is none: in a wrong folder everything would look empty.

A command that only reads does not create a home; a run creates it where the settings say.
"""

import os
from pathlib import Path

from srt_assets.core.errors import UserError
from srt_assets.settings import Settings, find_settings_file, load_settings

# This file marks that the databases of a Dagster instance are complete.
READY = ".srt_ready"
# Every home in which something was made has at least one of these.
_MADE = ("lake", "students", "srt.duckdb")
_NAMED_BY = ("SRT_HOME", "SRT_PROJECT__HOME")


def project() -> Settings:
    """The settings for the current folder. UserError if there is neither a settings file nor a home."""
    settings = load_settings()
    named = any(os.environ.get(variable) for variable in _NAMED_BY)
    if find_settings_file() is None and not named and not settings.home.exists():
        raise UserError(
            f"there is no srt.toml in {Path.cwd()} or above it, and no {settings.home.name}",
            "go to the project's folder, or name its file with SRT_SETTINGS or its home with SRT_HOME",
        )
    return settings


def to_read(home: Path) -> Path:
    """The home, if something was made there; else UserError, because reading would create an empty one."""
    if _is_home(home):
        return home
    what = f"{home} is no home: nothing was made there" if home.exists() else f"there is no home {home}"
    inside = home / ".srt"
    raise UserError(
        what,
        f"did you mean {inside}?" if _is_home(inside) else "make it: srt run; or correct project.home or SRT_HOME",
    )


def dagster_home(settings: Settings) -> Path:
    """DAGSTER_HOME if it is set, else a folder of the home."""
    return Path(os.environ.get("DAGSTER_HOME") or settings.home / "dagster").absolute()


def has_instance(settings: Settings) -> bool:
    """Whether there is a writable Dagster instance. Commands that only read do not create one."""
    ready = dagster_home(settings) / READY
    return ready.exists() and os.access(ready.parent, os.W_OK) and os.access(settings.home, os.W_OK)


def _is_home(path: Path) -> bool:
    return any((path / name).exists() for name in _MADE)
