"""The ways a stage may end badly, each with the remedy a person needs. Nothing else belongs here."""

import errno
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_NOT_ACCESSIBLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)


class _Explained(Exception):
    exit_code = 1

    def __init__(self, message: str, remedy: str) -> None:
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


def disk_full(error: BaseException) -> StageError | None:
    """The explanation if a full disk is behind an error of Python's or of DuckDB's, which has only words for it."""
    if getattr(error, "errno", None) != errno.ENOSPC and "No space left on device" not in str(error):
        return None
    file = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
    return StageError(f"no space left on the disk{file}", "free some and run again; everything written so far is kept")


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
