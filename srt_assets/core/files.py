"""Files that others have put there: opened only if they are ordinary files, read only as far as such files are long.

A named pipe, a terminal or a log of the kernel keeps its reader waiting for ever; a device may never end. Files whose
names come from outside are opened here. What a file must hold is not decided here.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from srt_assets.core.errors import Damaged, UserError
from srt_assets.paths import brief

# What people write: settings, lists, SQL. The largest seen has some 20 kB.
WRITTEN = 1 << 20
# What programs write for each other: configurations, indexes, manifests, records of a training.
RECORD = 1 << 26
# The program's own: the curve of a million steps, a batch of 50,000 calls.
OWN = 1 << 30
# tokenizer.json and what else belongs to a tokenizer: the largest known has 34 MB.
TOKENIZER = 1 << 28

# The kernel's own: they look like ordinary files of no or any length.
_OF_THE_KERNEL = ("/proc/", "/sys/")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NoFile(UserError):
    """There is something under the name, but no ordinary file, or one that is too large. `why`: what it is."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{brief(path)} {why}", "put an ordinary file there, or name another")
        self.path, self.why = path, why

    def __reduce__(self) -> tuple:  # it may come from another process
        return NoFile, (self.path, self.why)


def what_else(path: Path) -> str:
    """What lies under this name instead of an ordinary file: '' if it is one, or if nothing is there."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "is a link that leads nowhere" if path.is_symlink() else ""
    except OSError as error:
        return _of_error(error)
    except ValueError:
        return "has a character of code 0 in its name"
    return _what(path, found)


def is_folder(path: Path) -> bool:
    """Whether it is a folder, or leads to one; False for a name that no system takes too."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_there(path: Path) -> bool:
    """Whether an ordinary file lies under this name. NoFile if something else does."""
    if why := what_else(path):
        raise NoFile(path, why)
    return path.exists()


def opened(path: Path) -> BufferedReader:
    """An ordinary file, open for reading. NoFile if it is none, OSError if it is not there or may not be read.

    Looked at before it is opened, for opening alone starts some devices; and again after, for it may have been replaced
    meanwhile.
    """
    if why := what_else(path):
        raise NoFile(path, why)
    # Without O_NONBLOCK, opening a named pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if why := _what(path, os.fstat(descriptor)):
            raise NoFile(path, why)
        return open(descriptor, "rb")  # noqa: PTH123 - handed on open
    except BaseException:
        os.close(descriptor)
        raise


def read(path: Path, limit: int) -> bytes:
    """The bytes of a file that is small by nature. NoFile if it is longer than `limit` bytes, or as `opened`."""
    with opened(path) as file:
        found = file.read(limit + 1)
    if len(found) > limit:
        raise NoFile(path, f"is larger than {limit >> 20} MB, which no file of this kind is")
    return found


def read_text(path: Path, limit: int = RECORD, encoding: str = "utf-8") -> str:
    """The same as text. UnicodeDecodeError if it is none."""
    text = read(path, limit).decode(encoding)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_own(path: Path) -> str:
    """A small file that the program itself has written. Damaged if it is none any more."""
    try:
        return read_text(path, OWN)
    except NoFile as error:
        raise Damaged(path, f"it {error.why}") from None


def _of_error(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a link that leads in a circle"
    if error.errno == errno.ENAMETOOLONG:
        return "is longer than a path can be"
    return f"cannot be looked at: {error.strerror}"


def _what(path: Path, found: os.stat_result) -> str:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        return f"is {_KINDS.get(kind, 'no ordinary file')}"
    # Real files without a block on disk are rare: small ones, on some file systems.
    if not found.st_blocks and os.path.realpath(path).startswith(_OF_THE_KERNEL):
        return "is a file of the kernel's, not one on disk"
    return ""
