"""Paths as people write them."""

import os
from pathlib import Path

from srt_assets.core.errors import UserError


def expanded(text: Path | str, where: str) -> Path:
    """The path with `~` written out. UserError names `where` it stands if there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        remedy = "write the path in full; a name that begins with ~ as ./~name"
        raise UserError(f"{where}: {str(text)!r} names the home folder of a user who has none", remedy) from None


def shown(path: Path | str) -> str:
    """A path in characters that every table, log and terminal takes: other than the path itself if it is not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")
