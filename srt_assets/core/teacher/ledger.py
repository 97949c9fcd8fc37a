"""The ledger of teacher calls: every reply is on disk before it is parsed.

Each process appends to a segment of its own: one checksummed JSON line per call, many lines per fsync. A segment is
never opened for writing again, so nothing is appended to an incomplete line. How segments become Parquet parts of the
table `teacher_calls` is in `sealing.py`.
"""

import asyncio
import fcntl
import json
import logging
import os
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from srt_assets.core import reserve
from srt_assets.core.errors import is_disk_full
from srt_assets.core.files import opened
from srt_assets.core.lake import Lake
from srt_assets.core.locks import sync

TABLE = "teacher_calls"
# Seconds. Lines that arrive within this time share one fsync; a reply is on disk well within 50 ms of its arrival.
GATHER_S = 0.01

_Line = tuple[bytes, asyncio.AbstractEventLoop, "asyncio.Future[None]"]

log = logging.getLogger(__name__)


class Ledger:
    """Appends the calls of one process to its segment. Use it in a `with` block; many tasks may append at once."""

    def __init__(self, lake: Lake) -> None:
        self.directory = lake.directory(TABLE)
        self.name = f"segment-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}-{uuid.uuid4().hex[:12]}.jsonl"
        self._wake = threading.Condition()
        self._pending: list[_Line] = []
        self._closing = False
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self._home, self._size = lake.home, 0
        # Set when the disk became full. All rows so far are written, but no further call should be made.
        self.full: OSError | None = None

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def append(self, row: dict[str, Any]) -> None:
        """Return when the row is on disk. OSError if it cannot be written, RuntimeError after `close`."""
        # Shielded: a cancelled task must not keep its paid reply from being written.
        await asyncio.shield(self.put(row))

    def put(self, row: dict[str, Any]) -> "asyncio.Future[None]":
        """Append without waiting: the row is written before `close` returns. Errors as `append`."""
        line = encode({**row, "segment": self.name})
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._wake:
            if self._error:
                raise self._error
            if self._closing:
                # A second Ctrl-C does not wait for calls in flight. Their replies must not reopen the segment.
                raise RuntimeError("the ledger is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="ledger", daemon=True)
                self._thread.start()
            self._pending.append((line, loop, future))
            self._wake.notify()
        return future

    def close(self) -> None:
        """Write what is pending and release the segment, so that it can be sealed."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread:
            self._thread.join()
            self._thread = None

    def _write(self) -> None:
        try:
            self._write_segment()
        except OSError as error:  # the segment cannot be made: without this, waiting tasks would hang forever
            with self._wake:
                self._error = error
                batch, self._pending = self._pending, []
            _release(batch, error)

    def _write_segment(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        hidden = self.directory / f".{self.name}"
        with hidden.open("wb", buffering=0) as file:
            # Locked before it is renamed: `seal` takes an unlocked segment for that of a dead process.
            fcntl.flock(file, fcntl.LOCK_EX)
            hidden.replace(self.directory / self.name)
            sync(self.directory)
            while True:
                with self._wake:
                    while not self._pending and not self._closing:
                        self._wake.wait()
                    if not self._pending:
                        return
                if not self._closing:
                    time.sleep(GATHER_S)
                with self._wake:
                    batch, self._pending = self._pending, []
                self._put(file.fileno(), batch)

    def _put(self, segment: int, batch: list[_Line]) -> None:
        lines = b"".join(line for line, _, _ in batch)
        try:
            if self._error is None:
                self._append(segment, lines)
        except OSError as error:
            self._error = OSError(error.errno, error.strerror, str(self.directory / self.name))
            with suppress(OSError):  # remove an incomplete line, which would look like a crash
                os.ftruncate(segment, self._size)
        _release(batch, self._error)

    def _append(self, segment: int, lines: bytes) -> None:
        """Write lines to disk. If the disk is full, use the reserved space and set `full`."""
        try:
            self._write_at_end(segment, lines)
        except OSError as error:
            if not is_disk_full(error):
                raise
            self.full = OSError(error.errno, error.strerror, str(self.directory / self.name))
            reserve.give_back(self._home)
            # All lines again: after a failed fsync it is unknown how many are on disk.
            self._write_at_end(segment, lines)
        self._size += len(lines)

    def _write_at_end(self, segment: int, lines: bytes) -> None:
        done = 0
        while done < len(lines):
            done += os.pwrite(segment, lines[done:], self._size + done)
        os.fsync(segment)


def _release(batch: list[_Line], error: OSError | None) -> None:
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for _, loop, future in batch:
        loops.setdefault(loop, []).append(future)
    for loop, futures in loops.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, futures, error)


def _settle(futures: list["asyncio.Future[None]"], error: OSError | None) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error) if error else future.set_result(None)


def encode(row: dict[str, Any]) -> bytes:
    """A row as one line: CRC-32 (8 hex digits), a space, JSON, a newline. Replaces lone surrogates by `?`."""
    # A server that cuts its message in the middle of an emoji sends a lone surrogate. Parquet cannot store it, so
    # sealing would fail each time.
    body = json.dumps(row, separators=(",", ":"), default=datetime.isoformat, ensure_ascii=False).encode(
        "utf-8", "replace"
    )
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> dict[str, Any] | None:
    """The row of a line; None if the line is incomplete or damaged."""
    body = line[9:-1]
    if line != b"%08x %s\n" % (zlib.crc32(body), body):
        return None
    try:
        row = json.loads(body)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def open_segment(path: Path) -> BinaryIO | None:
    """Open a segment for reading; None if another process has just sealed it, so that its rows are in a part."""
    try:
        return opened(path)
    except FileNotFoundError:
        return None


def read_segment(path: Path, damaged: list[bytes] | None = None) -> Iterator[dict[str, Any]]:
    """The valid rows of a segment; none if it was just sealed. Invalid lines are appended to `damaged`."""
    if file := open_segment(path):
        with file:
            yield from read_lines(file, damaged)


def read_lines(file: BinaryIO, damaged: list[bytes] | None = None) -> Iterator[dict[str, Any]]:
    """The valid rows of an open segment. The last line may be incomplete if its writer is still writing or has died.

    Invalid lines are appended to `damaged`.
    """
    for line in file:
        if (row := decode(line)) is not None:
            row["created_at"] = datetime.fromisoformat(row["created_at"]) if row.get("created_at") else None
            yield row
        elif damaged is not None:
            damaged.append(line)


def segments(lake: Lake) -> list[Path]:
    return sorted(lake.directory(TABLE).glob("segment-*.jsonl"))
