"""Paths as people write them."""

import os
from pathlib import Path

from srt_assets.core.errors import UserError

# In characters; most systems take 4,096 bytes.
_LONGEST = 1000


def expanded(text: Path | str, where: str) -> Path:
    """The path with `~` written out. UserError names `where` it stands if there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        remedy = "write the path in full; a name that begins with ~ as ./~name"
        raise UserError(f"{where}: {brief(text)!r} names the home folder of a user who has none", remedy) from None


def shown(path: Path | str) -> str:
    """A path in characters that every table, log and terminal takes: other than the path itself if it is not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def brief(path: Path | str) -> str:
    """The same for a message: of a path that no system takes for its length, the beginning and the end."""
    text = shown(path)
    return text if len(text) <= _LONGEST else f"{text[:80]}…{text[-80:]} ({len(text):,} characters)"
