"""Room on the home's disk that is kept back for the moment in which the disk is full.

What was paid for and is on its way, why the run failed, and the end of the run in Dagster's records still have to be
written then. So a run keeps a file of a few megabytes with nothing in it, and gives it back when a write fails.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from srt_assets.core.errors import disk_full

NAME = "tmp/reserve"
SIZE = 8 << 20
# Of what is left on a small disk.
_SHARE = 16


def hold(home: Path, least: int = 0) -> None:
    """Keep room back in a home that exists, unless it is kept already.

    OSError if not even `least` bytes can be kept, for the disk is full.
    """
    path = home / NAME
    try:
        size = max(least, min(SIZE, shutil.disk_usage(home).free // _SHARE))
        if path.is_file() and path.stat().st_size >= size:
            return
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        _fill(path, size)
    except FileExistsError:  # another process keeps it
        return
    except OSError as error:
        give_back(home)
        # Where files cannot be made in advance, or by us, the first write will say what is wrong.
        if least and disk_full(error):
            raise OSError(error.errno, error.strerror, str(path)) from None


def give_back(home: Path) -> None:
    """Let what must be written have the room that was kept."""
    with suppress(OSError):
        (home / NAME).unlink(missing_ok=True)


def _fill(path: Path, size: int) -> None:
    with path.open("xb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(1, size))
        else:
            file.write(b"\0" * size)
