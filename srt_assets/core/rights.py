"""Permissions of the files in a home: only its owner may use them, and its group if the home is a team's.

A home is a team's if its folder is writable by the group (`chmod 2770`); then the group may read and write new files in
it. Other users never may. Existing files keep their permissions.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ALONE, TEAM = 0o077, 0o007
# The variable with the user's own umask, used for files outside the home.
_USERS = "SRT_UMASK"


def keep(home: Path) -> None:
    """Set the umask of this process and its children to that of this home."""
    before = os.umask(TEAM if is_team(home) else ALONE)
    os.environ.setdefault(_USERS, f"{before:o}")


def is_team(home: Path) -> bool:
    """Whether the home's folder is writable by its group."""
    return home.is_dir() and bool(home.stat().st_mode & stat.S_IWGRP)


@contextmanager
def restored() -> Iterator[None]:
    """Restore the umask after the block."""
    before, known = os.umask(0), os.environ.get(_USERS)
    os.umask(before)
    try:
        yield
    finally:
        os.umask(before)
        if known is None:
            os.environ.pop(_USERS, None)


@contextmanager
def of_the_user() -> Iterator[None]:
    """Use the user's own umask within the block."""
    if (users := os.environ.get(_USERS)) is None:
        yield
        return
    before = os.umask(int(users, 8))
    try:
        yield
    finally:
        os.umask(before)


def give(path: Path) -> None:
    """Give a file, or a folder and everything in it, the permissions that the user's own umask allows."""
    if (users := os.environ.get(_USERS)) is None:
        return
    for one in (path, *path.rglob("*")):
        one.chmod((0o777 if one.is_dir() else 0o666) & ~int(users, 8))


def share_databases(folder: Path) -> None:
    """Make the databases in a team's folder writable by the group; SQLite creates them with mode 0644 at most."""
    if not is_team(folder):
        return
    for path in folder.rglob("*.db*"):
        with suppress(FileNotFoundError):  # SQLite deletes its journal when a transaction ends
            facts = path.lstat()
            if stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & stat.S_IWGRP:
                path.chmod(stat.S_IMODE(facts.st_mode) | stat.S_IRGRP | stat.S_IWGRP)


def open_to_others(home: Path) -> str:
    """The chmod command for a folder that more users can access than allowed; '' if none is needed."""
    others = stat.S_IRWXO if is_team(home) else stat.S_IRWXO | stat.S_IRWXG
    if not home.is_dir() or not home.stat().st_mode & others:
        return ""
    return f"chmod -R {'o' if is_team(home) else 'go'}-rwx"
