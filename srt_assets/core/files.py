"""Opens untrusted files: only if they are ordinary files, and only up to a size limit for each kind of file.

Reading a named pipe, a terminal or a kernel log may block forever, and a device may have no end. All files whose names
come from outside the program are opened here. The checks of what a file contains belong to its readers, not here.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from srt_assets.core.errors import Damaged, UserError
from srt_assets.paths import brief

# Size limits in bytes. Files that people write: settings, lists, SQL. The largest seen has some 20 kB.
WRITTEN = 1 << 20
# Files that programs write: configurations, indexes, manifests, records of a training.
RECORD = 1 << 26
# Files of this program: the loss curve of a million steps, a batch of 50,000 calls.
OWN = 1 << 30
# tokenizer.json and the other files of a tokenizer: the largest known has 34 MB.
TOKENIZER = 1 << 28

# Files of the kernel look like ordinary files of size 0 or of any size.
_OF_THE_KERNEL = ("/proc/", "/sys/")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NoFile(UserError):
    """The path exists but is no ordinary file, or is too large. `why`: a sentence without its subject, the path."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{brief(path)} {why}", "put an ordinary file there, or name another")
        self.path, self.why = path, why

    def __reduce__(self) -> tuple:  # it may come from another process
        return NoFile, (self.path, self.why)


def what_else(path: Path) -> str:
    """Why this path cannot be read as an ordinary file ("is a folder"); '' if it can, or if nothing is there."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "is a link that leads nowhere" if path.is_symlink() else ""
    except OSError as error:
        return _of_error(error)
    except ValueError:
        return "has a character of code 0 in its name"
    return _what(path, found)


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder. Symlinks count as 0, because deleting the folder keeps their targets."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def is_folder(path: Path) -> bool:
    """Whether the path is a folder or a symlink to one; False also for names that the file system refuses."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_there(path: Path) -> bool:
    """Whether the path is an ordinary file. NoFile if it exists but is anything else."""
    if why := what_else(path):
        raise NoFile(path, why)
    return path.exists()


def opened(path: Path) -> BufferedReader:
    """Open an ordinary file for reading. NoFile if it is anything else; OSError if it is missing or not readable.

    The kind of file is checked before opening, because opening alone starts some devices, and again afterwards, because
    the file may have been replaced in between.
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
    """The bytes of a small file. NoFile if it is longer than `limit` bytes; other errors as `opened`."""
    with opened(path) as file:
        found = file.read(limit + 1)
    if len(found) > limit:
        raise NoFile(path, f"is larger than {limit >> 20} MB, which no file of this kind is")
    return found


def read_text(path: Path, limit: int = RECORD, encoding: str = "utf-8") -> str:
    """The text of a small file, with line ends as \\n. UnicodeDecodeError if invalid; other errors as `read`."""
    text = read(path, limit).decode(encoding)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_own(path: Path) -> str:
    """The text of a small file that the program itself wrote. Damaged if it is no longer an ordinary file."""
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
    # Only some file systems store small real files without a block on disk, so the path decides.
    if not found.st_blocks and os.path.realpath(path).startswith(_OF_THE_KERNEL):
        return "is a file of the kernel's, not one on disk"
    return ""
