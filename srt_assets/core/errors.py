"""The two ways a stage may end badly, each with the remedy a person needs. Nothing else belongs here."""

import errno
from collections.abc import Iterable

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
