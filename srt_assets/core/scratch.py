"""Where DuckDB puts what does not fit in memory: a folder of its own for each connection, never a shared one.

DuckDB names its spill files alike in every process and reads back what lies under the name: two connections that
spill into one folder overwrite each other, and crash.
"""

import os
import shutil
import socket
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

import duckdb
import psutil

from srt_assets.core import rights
from srt_assets.core.tables import sql_literal
from srt_assets.core.untouched import untouched

_MACHINE = socket.gethostname()
_FOREIGN_S = 7 * 24 * 3600.0


def spill_into(con: duckdb.DuckDBPyConnection, home: Path) -> None:
    """Let this connection spill under the home. DuckDB makes the folder when it needs it and removes it when closed."""
    folder = str(_root(home) / f"{_MACHINE}@{os.getpid()}@{uuid.uuid4().hex}")
    con.execute(f"SET temp_directory = {sql_literal(folder)}")


def folder(home: Path) -> tempfile.TemporaryDirectory:
    """A folder under the home that goes with the object given back, or after this process was killed, as spilled data
    does.
    """
    return tempfile.TemporaryDirectory(prefix=f"{_MACHINE}@{os.getpid()}@", dir=_root(home))


def _root(home: Path) -> Path:
    root = home / "tmp"
    if not home.exists():  # a command that only reads does not make it
        return Path(tempfile.gettempdir())
    try:
        root.mkdir(mode=0o777 & ~(rights.TEAM if rights.is_team(home) else rights.ALONE), exist_ok=True)
    except OSError:
        if not home.is_dir():
            raise
        # A user who may only read the home can query it all the same.
        return Path(tempfile.gettempdir())
    if not os.access(root, os.W_OK):
        return Path(tempfile.gettempdir())
    _remove_left_behind(root)
    return root


def _remove_left_behind(root: Path) -> None:
    """Spilled gigabytes of processes that were killed. One whose number is used again keeps its folder for a while."""
    gone: list[str] = []
    elsewhere: dict[str, float] = {}
    for folder in root.glob("*@*@*"):
        machine, process, _ = folder.name.rsplit("@", 2)
        if machine == _MACHINE:
            gone += [] if psutil.pid_exists(int(process)) else [folder.name]
        else:  # another machine or container, whose processes are not seen from here
            with suppress(FileNotFoundError):
                elsewhere[folder.name] = folder.stat().st_mtime
    if elsewhere:
        gone += untouched(elsewhere, _FOREIGN_S, root / ".looks.json")
    for name in gone:
        shutil.rmtree(root / name, ignore_errors=True)
