"""Temporary folders under the home, mainly for data that DuckDB spills: each connection gets a folder of its own.

DuckDB uses the same names for spill files in every process. Two connections that spill into one folder would overwrite
each other's files and crash.
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
    """Let this connection spill under the home. DuckDB makes the folder when needed and removes it when closed."""
    folder = str(_root(home) / f"{_MACHINE}@{os.getpid()}@{uuid.uuid4().hex}")
    con.execute(f"SET temp_directory = {sql_literal(folder)}")


def folder(home: Path) -> tempfile.TemporaryDirectory:
    """A folder under the home, deleted with the returned object or, if this process is killed, by a later one."""
    return tempfile.TemporaryDirectory(prefix=f"{_MACHINE}@{os.getpid()}@", dir=_root(home))


def _root(home: Path) -> Path:
    root = home / "tmp"
    if not home.exists():  # a command that only reads does not make the home
        return Path(tempfile.gettempdir())
    try:
        root.mkdir(mode=0o777 & ~(rights.TEAM if rights.is_team(home) else rights.ALONE), exist_ok=True)
    except OSError:
        if not home.is_dir():
            raise
        # A user without write permission can still query the home.
        return Path(tempfile.gettempdir())
    if not os.access(root, os.W_OK):
        return Path(tempfile.gettempdir())
    _remove_left_behind(root)
    return root


def _remove_left_behind(root: Path) -> None:
    """Remove the folders of killed processes. A folder stays while another process has the same process id."""
    gone: list[str] = []
    elsewhere: dict[str, float] = {}
    for folder in root.glob("*@*@*"):
        machine, process, _ = folder.name.rsplit("@", 2)
        if machine == _MACHINE:
            gone += [] if psutil.pid_exists(int(process)) else [folder.name]
        else:  # another machine or container, whose processes are not visible here
            with suppress(FileNotFoundError):
                elsewhere[folder.name] = folder.stat().st_mtime
    if elsewhere:
        gone += untouched(elsewhere, _FOREIGN_S, root / ".looks.json")
    for name in gone:
        shutil.rmtree(root / name, ignore_errors=True)
