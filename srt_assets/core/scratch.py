"""Where DuckDB puts what does not fit in memory: a folder of its own for each connection, never a shared one.

DuckDB names its spill files alike in every process and reads back whatever lies under the name: two connections that
spill into one folder overwrite each other, and crash.
"""

import os
import shutil
import socket
import tempfile
import uuid
from pathlib import Path

import duckdb

_MACHINE = socket.gethostname()


def spill_into(con: duckdb.DuckDBPyConnection, home: Path) -> None:
    """Let this connection spill under the home. DuckDB makes the folder when it needs it and removes it when closed."""
    folder = str(_root(home) / f"{_MACHINE}@{os.getpid()}@{uuid.uuid4().hex}")
    con.execute("SET temp_directory = '" + folder.replace("'", "''") + "'")


def _root(home: Path) -> Path:
    root = home / "tmp"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError:
        if not home.is_dir():
            raise
        # Whoever may only read the home can ask questions all the same.
        return Path(tempfile.gettempdir())
    if not os.access(root, os.W_OK):
        return Path(tempfile.gettempdir())
    _remove_left_behind(root)
    return root


def _remove_left_behind(root: Path) -> None:
    """Spilled gigabytes of processes that were killed. One whose number is used again keeps its folder for a while."""
    for folder in root.glob(f"{_MACHINE}@*@*"):
        try:
            os.kill(int(folder.name.split("@")[-2]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:
            pass  # somebody else's, and alive
