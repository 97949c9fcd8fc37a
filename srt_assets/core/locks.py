"""Locks between processes, and atomic replacement of files. What a lock protects is decided by its callers."""

import fcntl
import logging
import os
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from srt_assets.core.files import NoFile, opened

# Seconds of waiting for a lock before a message is logged.
SILENT_S = 2.0

log = logging.getLogger(__name__)


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[None]:
    """An exclusive lock between processes, freed by the kernel when its holder dies. Logs once if it waits long.

    Raises BlockingIOError if another process has the lock and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(path) as file:
        patience = time.monotonic() + SILENT_S
        while not try_lock(file):
            if not wait:
                raise BlockingIOError(f"another process is writing {path.stem}")
            if time.monotonic() > patience:
                # A warning, because the terminal shows no lower level.
                log.warning("waiting for another process that is writing %s", path.stem)
                fcntl.flock(file, fcntl.LOCK_EX)
                break
            time.sleep(0.02)
        yield


def lock_file(path: Path) -> IO[bytes]:
    """Open a file to lock; it is made if missing."""
    # Opened for reading and writing, because opening a named pipe for one of them would block.
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "rb+", buffering=0)


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed or the process dies; False if another process has the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def keep_while(reader: object, folder: Path, names: Iterable[str]) -> None:
    """Keep parts on disk until the object `reader` is gone or its process ends: `kept` returns their names.

    Does nothing in a home without write permission.
    """
    path = folder / f"{uuid.uuid4().hex}.parts"
    hidden = path.with_name(f".{path.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = hidden.open("w")
    except OSError:  # no write permission: a home of another user
        return
    # Locked before it is renamed: `kept` takes an unlocked file for that of a dead process.
    fcntl.flock(file, fcntl.LOCK_EX)
    with naming(path):
        file.write("\n".join(names))
        file.flush()
    hidden.replace(path)
    weakref.finalize(reader, _release, file, path)


def _release(file: IO[str], path: Path) -> None:
    path.unlink(missing_ok=True)
    file.close()


def kept(folder: Path) -> set[str]:
    """The names of the parts that living readers keep. Removes the lists of dead processes."""
    names: set[str] = set()
    for path in folder.glob("*.parts"):
        with suppress(FileNotFoundError, NoFile), opened(path) as file:  # its reader may end meanwhile
            if try_lock(file):
                path.unlink()
            else:
                names.update(file.read().decode().splitlines())
    return names


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file name to an OSError raised in the block; Python names it only when opening a file fails."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Replace a file atomically: readers, and a restart after a crash, see the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with naming(path):
            temporary.write_text(text)
            sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # frees space on a full disk
        raise
    sync(path.parent)
