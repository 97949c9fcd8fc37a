"""The errors that users see, each with a remedy, and the translation of library errors into them. Nothing else."""

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from srt_assets.core.masking import without_secrets

_NOT_ACCESSIBLE = (
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)

_NO_SPACE, _QUOTA, _READ_ONLY = "no space left on the disk", "the disk quota is used up", "the disk is read-only"
# Error number, its meaning, and the texts by which it is known when a library drops the number (the system's,
# SQLite's).
_FULL = (
    (errno.ENOSPC, _NO_SPACE, ("No space left on device", "database or disk is full")),
    (errno.EDQUOT, _QUOTA, ("Disk quota exceeded",)),
    (errno.EROFS, _READ_ONLY, ("Read-only file system",)),
)
_ROOM = {
    _NO_SPACE: "free some space (srt prune lists checkpoints that nothing needs)",
    _QUOTA: "delete some of your files (srt prune lists checkpoints that nothing needs)",
    _READ_ONLY: "have it mounted for writing, or set SRT_HOME to a folder of another disk,",
}


class _Explained(Exception):
    exit_code = 1

    def __init__(self, message: str, remedy: str) -> None:
        # A message may quote a path, a setting or a server's reply.
        message, remedy = without_secrets(message), without_secrets(remedy)
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.remedy}"


class UserError(_Explained):
    """The user must change something (a file, a setting, an argument): exit code 2. Names the file, row or key."""

    exit_code = 2


class Damaged(UserError):
    """A file of the home is not as the program wrote it: cut short, changed, missing, or not an ordinary file."""

    def __init__(self, file: object, why: str) -> None:
        super().__init__(
            f"{file} is damaged: {why}",
            "run srt repair: it says what is lost and sets the file aside; or restore the file from a backup",
        )
        self.file = Path(str(file))
        self._why = why

    def __reduce__(self) -> tuple[Any, ...]:  # it may come from another process
        return Damaged, (self.file, self._why)


class StageError(_Explained):
    """The input was right but the job failed (teacher down, disk full, killed worker): exit code 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: suggests the nearest known name, or lists all of them."""
    import difflib

    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"


def disk_full(error: BaseException, place: Path | None = None) -> StageError | None:
    """A StageError if a full or read-only disk caused this error of Python's or of a library; None otherwise.

    The message names the file and the disk if the error does; `place` is the file to name if it does not.
    """
    number, text = getattr(error, "errno", None), str(error)
    what = next((what for code, what, words in _FULL if number == code or any(w in text for w in words)), None)
    if what is None:
        return None
    named = error.filename if isinstance(error, OSError) and isinstance(error.filename, str | bytes) else None
    if named is None and (quoted := re.search(r'"(/[^"]+)"', text)):
        named = quoted[1]
    written = Path(os.fsdecode(named)) if named else place
    remedy = f"{_ROOM[what]}{f' on {_disk_of(written)}' if written else ''} and run again"
    return StageError(
        f"{what}{f' while writing {written}' if written else ''}", f"{remedy}; what was written so far is kept"
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether the error would go away with more space on the disk."""
    return disk_full(error) is not None and getattr(error, "errno", None) != errno.EROFS


def _disk_of(path: Path) -> Path:
    """The mount point of the disk that holds this file."""
    real = Path(os.path.realpath(path))
    return next((place for place in (real, *real.parents) if os.path.ismount(place)), real)


def out_of_memory(error: BaseException) -> StageError | None:
    """A StageError if Python, DuckDB or torch could not allocate memory; None otherwise."""
    if not isinstance(error, MemoryError) and type(error).__name__ not in ("OutOfMemoryException", "OutOfMemoryError"):
        return None
    said = " ".join(str(error).split())
    return StageError(f"not enough memory: {said or 'none is left'}", "stop other programs, and run again")


def not_accessible(error: BaseException) -> UserError | None:
    """A UserError if a path lacks permissions, or is a file instead of a folder or the reverse; None otherwise."""
    if not isinstance(error, OSError) or error.errno not in _NOT_ACCESSIBLE or not error.filename:
        return None
    return UserError(
        f"cannot use {error.filename}: {error.strerror}",
        "correct the path (project.home, SRT_HOME, --out) or its permissions",
    )


def damage(error: BaseException) -> UserError | None:
    """A UserError if a query read a damaged table; else None. Its text comes from `Table.error_sql`."""
    found = re.search(r"Invalid Input Error: (.* is damaged: .*)\n  -> (.*)", str(error), re.DOTALL)
    return UserError(found[1], found[2]) if found else None


def explained(error: BaseException) -> UserError | StageError | None:
    """The UserError or StageError that explains an error of Python's or a library's; None if none is known."""
    return disk_full(error) or out_of_memory(error) or damage(error) or not_accessible(error)
