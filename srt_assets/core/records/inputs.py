"""Which bytes the settings' files hold: their SHA-256, remembered by how they look, and checked while a run reads them.

`srt status` asks for the sums many times and reads no file whose sum it knows. A run hashes what it reads: rows of one
file must not be taken for those of another. What the bytes mean is decided in `read.py` and `meaning.py`.
"""

import hashlib
import io
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from srt_assets.core import files, looks
from srt_assets.core.errors import StageError, UserError
from srt_assets.core.hashing import file_sha256

_MEMORY = "inputs"


def sums(home: Path, paths: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of each file. UserError names one that cannot be read.

    Read are those that look otherwise than when they were last read, or were changed shortly before that.
    """
    memory = looks.memory_of(home, _MEMORY)
    known = looks.remembered(memory)
    found: dict[Path, str] = {}
    settled = {}
    for path in dict.fromkeys(paths):
        with _readable(path):
            now, look = time.time_ns(), looks.looks(path.stat())
            facts = known.get(str(path))
            if not (isinstance(facts, list) and facts[:-1] == look):
                facts = [*look, file_sha256(path)]
        found[path] = facts[-1]
        if known.get(str(path)) == facts or looks.is_settled(look, now):
            settled[str(path)] = facts
    if settled != known and home.is_dir():  # a command that only looks makes no home
        looks.remember(memory, settled)
    return found


class Reading:
    """The files that a run reads, each hashed while it is read. `expected`: the sums that the run began with."""

    def __init__(self, home: Path, expected: Mapping[Path, str]) -> None:
        self._home, self._expected = home, expected
        self._opened: list[tuple[Path, list[int], _Hashed]] = []

    def opened(self, path: Path) -> io.BufferedReader:
        """A file, open for reading. NoFile or OSError as `files.opened`."""
        hashed = _Hashed(files.opened(path).detach())
        self._opened.append((path, looks.looks(os.fstat(hashed.fileno())), hashed))
        return io.BufferedReader(hashed, 1 << 17)

    def check(self) -> None:
        """StageError names the first file that is not what the run began with, at its end or while it was read."""
        for path, look, hashed in self._opened:
            with _readable(path):
                now = looks.looks(path.stat())
                # Not read to the end, or not in order, as Parquet is: then the file is hashed now.
                same = [hashed.sum] if hashed.sum and now == look else [hashed.sum or "", file_sha256(path)]
            if {*same} - {""} != {self._expected[path]}:
                looks.remember(looks.memory_of(self._home, _MEMORY), {})
                raise changed(path)


def changed(path: Path | str) -> StageError:
    """What the run is told whose file was written while it read."""
    return StageError(f"{path} was changed while it was read", "run again when nothing writes it: srt run raw_dataset")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What the system refuses is the same error here as where the rows are read."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}", "make the file readable") from None


class _Hashed(io.RawIOBase):
    """A file that is hashed as far as it is read in order. `sum`: SHA-256 of all of it, '' until its end was read."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self._at = self._hashed = 0
        self.sum = ""

    def readinto(self, buffer) -> int:
        n = self._file.readinto(buffer) or 0
        if self._at == self._hashed:
            self._hash.update(memoryview(buffer)[:n])
            self._hashed += n
            if not n and len(buffer):
                self.sum = self._hash.hexdigest()
        self._at += n
        return n

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = self._file.seek(offset, whence)
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()
