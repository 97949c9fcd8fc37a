"""Files packed with gzip or zstd, unpacked while they are read. Memory holds a buffer, however large the content is.

A file that is cut short, damaged or followed by other data is an error, never a shorter file. Several gzip members or
zstd frames in a row are one file.
"""

import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from srt_assets.core.errors import UserError

PACKINGS = {".gz": "gzip", ".zst": "zstd"}
# How packed files begin; of zstd also frames to be skipped.
_STARTS = {
    "gzip": (b"\x1f\x8b",),
    "zstd": (b"\x28\xb5\x2f\xfd", *(bytes([n]) + b"\x2a\x4d\x18" for n in range(0x50, 0x60))),
}
_BUFFER = 1 << 17


def unpacked(file: Path, opened: Callable[[Path], io.BufferedReader]) -> io.BufferedReader:
    """The unpacked content, to be read from start to end. UserError while it is read if the file is damaged."""
    source = opened(file)
    first = source.peek(4)
    if not first:
        source.close()
        raise UserError(f"{file} is empty, which no packed file is", "fetch or pack it again")
    kind = PACKINGS[file.suffix.lower()]
    if not first.startswith(_STARTS[kind]):
        source.close()
        raise UserError(
            f"{file} is not packed with {kind}", f"leave out the {file.suffix} of its name, or fetch it again"
        )
    return io.BufferedReader(_Unpacked(file, source), _BUFFER)


def spooled(file: Path, opened: Callable[[Path], io.BufferedReader], start: bytes) -> BinaryIO:
    """The unpacked content for reading in any order, in an unnamed temporary file, which is deleted when it is closed.

    If the content does not begin with `start`, the rest is not unpacked.
    """
    place = tempfile.TemporaryFile()  # noqa: SIM115 - handed on open
    try:
        with unpacked(file, opened) as source:
            place.write(first := source.read(len(start)))
            if first == start:
                shutil.copyfileobj(source, place, _BUFFER)
        place.seek(0)
    except BaseException:
        place.close()
        raise
    return place


class _Unpacked(io.RawIOBase):
    def __init__(self, file: Path, source: io.BufferedReader) -> None:
        self._file, self._source = file, source
        kind = PACKINGS[file.suffix.lower()]
        self._stream = pa.CompressedInputStream(pa.PythonFile(source, mode="r"), kind)

    def readinto(self, buffer) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            if error.errno is not None:  # an error of the disk, not of the packed data
                raise
            raise UserError(f"{self._file} is damaged or cut short: {error}", "download or pack it again") from None
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._source.close()
        super().close()
