"""The SHA-256 of the settings' files: stored while size, times and inode stay the same, and checked by each run.

`srt status` asks for the sums often and reads no file whose sum is stored. A run hashes what it reads, so that a file
that changes meanwhile is noticed. Rows are read in `read.py` and interpreted in `forms/meaning.py`.
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
    """SHA-256 of each file. UserError names a file that cannot be read.

    A file is hashed again if its size, times or inode have changed, or if it was written shortly before the last hash.
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
    if settled != known and home.is_dir():  # a command that only reads creates no home
        looks.remember(memory, settled)
    return found


class Reading:
    """The files that a run reads, each hashed while it is read. `expected`: the sums at the start of the run."""

    def __init__(self, home: Path, expected: Mapping[Path, str]) -> None:
        self._home, self._expected = home, expected
        self._opened: list[tuple[Path, list[int], _Hashed]] = []

    def opened(self, path: Path) -> io.BufferedReader:
        """The file, open for reading. NoFile or OSError as `files.opened`."""
        hashed = _Hashed(files.opened(path).detach())
        self._opened.append((path, looks.looks(os.fstat(hashed.fileno())), hashed))
        return io.BufferedReader(hashed, 1 << 17)

    def check(self) -> None:
        """StageError names the first file whose content is not what it was at the start of the run."""
        for path, look, hashed in self._opened:
            with _readable(path):
                now = looks.looks(path.stat())
                # A file that was not read to its end, or not in order (Parquet), is hashed now.
                same = [hashed.sum] if hashed.sum and now == look else [hashed.sum or "", file_sha256(path)]
            if {*same} - {""} != {self._expected[path]}:
                looks.remember(looks.memory_of(self._home, _MEMORY), {})
                raise changed(path)


def changed(path: Path | str) -> StageError:
    """The error of a run whose input file changed while it was read."""
    remedy = "run again when no program writes to the file: srt run raw_dataset"
    return StageError(f"{path} was changed while it was read", remedy)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns an OSError into the UserError that reading the rows raises too."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}", "make the file readable") from None


class _Hashed(io.RawIOBase):
    """A file that is hashed while it is read in order. `sum`: SHA-256 of the whole file, '' until its end was read."""

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
