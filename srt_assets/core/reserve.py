"""Disk space that is reserved for the moment when the disk is full.

At that moment the program still has to write paid replies that are under way, the reason of the failure, and the end of
the run in Dagster's records. So a run allocates an empty file of a few megabytes and deletes it when a write fails.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from srt_assets.core.errors import disk_full

NAME = "tmp/reserve"
SIZE = 8 << 20
# On a small disk the reserve is this fraction (1/16) of the free space.
_SHARE = 16


def hold(home: Path, least: int = 0) -> None:
    """Reserve space in an existing home, unless that is done. OSError if the disk has less than `least` bytes free."""
    path = home / NAME
    try:
        size = max(least, min(SIZE, shutil.disk_usage(home).free // _SHARE))
        if path.is_file() and path.stat().st_size >= size:
            return
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        _fill(path, size)
    except FileExistsError:  # another process has just reserved it
        return
    except OSError as error:
        give_back(home)
        # Other errors (no preallocation, no permission) are reported by the first real write.
        if least and disk_full(error):
            raise OSError(error.errno, error.strerror, str(path)) from None


def give_back(home: Path) -> None:
    """Free the reserved space."""
    with suppress(OSError):
        (home / NAME).unlink(missing_ok=True)


def _fill(path: Path, size: int) -> None:
    with path.open("xb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(1, size))
        else:
            file.write(b"\0" * size)
