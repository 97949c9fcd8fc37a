"""A disk of a few megabytes that can be filled: a tmpfs in a mount namespace of its own, for root and for others.

The test stays where it is and reaches the disk through /proc. Where a machine lets nobody make namespaces (a container
without the right, a hardened kernel) tests that need it are skipped with what the system said.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Every line it reads is a command; the answer is a line with its exit code.
_SHELL = 'while read -r line; do eval "$line" >&2; echo $?; done'


class SmallDisk:
    """`path`: its root, for us."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self._folder = folder
        unshare = shutil.which("unshare")
        if unshare is None:
            pytest.skip("no small disk can be made here: there is no `unshare`")
        pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
        command = [unshare, "--map-root-user", "--mount", "sh", "-c", _SHELL]
        self._holder = subprocess.Popen(command, text=True, bufsize=1, **pipes)
        self._megabytes = megabytes
        self.path = Path(f"/proc/{self._holder.pid}/root{folder}")
        if not self._do(f"mount -t tmpfs -o size={megabytes}m none '{folder}'") or not self.path.is_mount():
            self.close()
            said = self._holder.stderr.read() if self._holder.stderr else ""
            pytest.skip(f"no small disk can be made here: {said.strip() or 'it cannot be reached through /proc'}")

    def _do(self, command: str) -> bool:
        assert self._holder.stdin and self._holder.stdout
        try:
            self._holder.stdin.write(f"{command}\n")
            return self._holder.stdout.readline() == "0\n"
        except BrokenPipeError:
            return False

    def fill(self, left: int = 0) -> None:
        """Leave so many bytes, in whole pages."""
        room = shutil.disk_usage(self.path).free - left
        with (self.path / "ballast").open("ab") as ballast:
            end = ballast.tell()
            os.posix_fallocate(ballast.fileno(), end, max(room, 1)) if room > 0 else None

    def free(self) -> None:
        """Make room again."""
        (self.path / "ballast").unlink(missing_ok=True)

    def read_only(self, yes: bool = True) -> None:
        """Take the right to write, or give it back."""
        assert self._do(f"mount -o remount,{'ro' if yes else 'rw'},size={self._megabytes}m none '{self._folder}'")

    def close(self) -> None:
        for pipe in (self._holder.stdin, self._holder.stdout):
            if pipe:
                pipe.close()
        self._holder.wait()


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """A small disk on this folder. Skips the test where there can be none."""
    folder.mkdir(parents=True, exist_ok=True)
    disk = SmallDisk(folder, megabytes)
    try:
        yield disk
    finally:
        disk.close()
