"""Locks between processes, and files replaced whole. What they protect is known to those who use them."""

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

# A wait shorter than this is not worth a word.
SILENT_S = 2.0

log = logging.getLogger(__name__)


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[None]:
    """An exclusive lock between processes, freed by the kernel when its holder dies. Says so once if it waits long.

    Raises BlockingIOError if another has it and we are not to wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(path) as file:
        patience = time.monotonic() + SILENT_S
        while not try_lock(file):
            if not wait:
                raise BlockingIOError(f"another process is writing {path.stem}")
            if time.monotonic() > patience:
                # A warning, for nothing less is shown on a terminal.
                log.warning("waiting for another process that is writing %s", path.stem)
                fcntl.flock(file, fcntl.LOCK_EX)
                break
            time.sleep(0.02)
        yield


def lock_file(path: Path) -> IO[bytes]:
    """A file to lock, made if it is not there."""
    # For reading and writing: a named pipe under that name would wait for its other end.
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "rb+", buffering=0)


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file for this process, until it is closed or the process dies; False if another has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def keep_while(reader: object, folder: Path, names: Iterable[str]) -> None:
    """Name parts that must stay on disk as long as this reader lives, or its process.

    Does nothing where one may only read.
    """
    path = folder / f"{uuid.uuid4().hex}.parts"
    hidden = path.with_name(f".{path.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = hidden.open("w")
    except OSError:  # somebody else's home; no run of ours deletes anything there
        return
    # Locked before it gets its name: it must never look like a dead reader's.
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
    """The parts that living readers have named; what dead ones left is removed."""
    names: set[str] = set()
    for path in folder.glob("*.parts"):
        with suppress(FileNotFoundError, NoFile), opened(path) as file:  # its reader may end this moment
            if try_lock(file):
                path.unlink()
            else:
                names.update(file.read().decode().splitlines())
    return names


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError about an open file say which file it is; Python's own does so only where the file is opened."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
    """Put a file's, or a folder's, present state on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, finds the old text or the new."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with naming(path):
            temporary.write_text(text)
            sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk it is in the way
        raise
    sync(path.parent)
