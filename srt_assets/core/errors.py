"""The ways a stage may end badly, each with the remedy a person needs. Nothing else belongs here."""

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
# Number, what it means, and the words of those that hide the number: the system's own, SQLite's.
_FULL = (
    (errno.ENOSPC, _NO_SPACE, ("No space left on device", "database or disk is full")),
    (errno.EDQUOT, _QUOTA, ("Disk quota exceeded",)),
    (errno.EROFS, _READ_ONLY, ("Read-only file system",)),
)
_ROOM = {
    _NO_SPACE: "free some space (srt prune lists checkpoints that nothing needs)",
    _QUOTA: "delete something of yours (srt prune lists checkpoints that nothing needs)",
    _READ_ONLY: "have it mounted for writing, or set SRT_HOME to a folder of another disk,",
}


class _Explained(Exception):
    exit_code = 1

    def __init__(self, message: str, remedy: str) -> None:
        # It may quote a path, a setting, or what a server has said.
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
    """A file of the home is not what the program wrote there: cut short, changed, gone, or of another kind."""

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
    """The remedy for a name that does not exist: the nearest one, or all of them."""
    import difflib

    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"


def disk_full(error: BaseException, place: Path | None = None) -> StageError | None:
    """The explanation if a disk that takes no more is behind an error, of Python's or of a library that has only words.

    It names the file and the disk, as far as the error knows them; `place`: what was written to if it does not.
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
    """Whether more room on the disk is all that is missing."""
    return disk_full(error) is not None and getattr(error, "errno", None) != errno.EROFS


def _disk_of(path: Path) -> Path:
    """Where the disk begins that holds this file."""
    real = Path(os.path.realpath(path))
    return next((place for place in (real, *real.parents) if os.path.ismount(place)), real)


def not_accessible(error: BaseException) -> UserError | None:
    """The explanation if a file or folder may not be used, or is not of the kind it must be."""
    if not isinstance(error, OSError) or error.errno not in _NOT_ACCESSIBLE or not error.filename:
        return None
    return UserError(
        f"cannot use {error.filename}: {error.strerror}",
        "correct the path (project.home, SRT_HOME, --out) or its permissions",
    )


def damage(error: BaseException) -> UserError | None:
    """The explanation if a query met a table whose files are damaged: `Table.error_sql` gave it to DuckDB as text."""
    found = re.search(r"Invalid Input Error: (.* is damaged: .*)\n  -> (.*)", str(error), re.DOTALL)
    return UserError(found[1], found[2]) if found else None


def explained(error: BaseException) -> UserError | StageError | None:
    """The error with its remedy that stands behind one of Python's or DuckDB's; None if there is no better word."""
    return disk_full(error) or damage(error) or not_accessible(error)
