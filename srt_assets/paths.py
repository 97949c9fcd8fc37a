"""Paths in settings and arguments: expands `~`, and shows paths in messages. Opening files is in `core/files.py`."""

import os
from pathlib import Path

from srt_assets.core.errors import UserError

# Longest path shown in full, in characters; most systems allow 4,096 bytes.
_LONGEST = 1000


def expanded(text: Path | str, where: str) -> Path:
    """The path with `~` expanded. UserError, which names the place `where` the path is written, if it cannot be."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        remedy = "write the path in full; a name that begins with ~ as ./~name"
        raise UserError(f"{where}: {brief(text)!r} names the home folder of a user who has none", remedy) from None


def shown(path: Path | str) -> str:
    """A path as text that every table, log and terminal accepts; it differs from the path if that is not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def brief(path: Path | str) -> str:
    """A path for a message: only the beginning and the end if it is too long for any system."""
    text = shown(path)
    return text if len(text) <= _LONGEST else f"{text[:80]}…{text[-80:]} ({len(text):,} characters)"
