"""Who may read what is made in a home: only its owner, and its group if the home is a team's.

A home is a team's if its folder lets the group write (`chmod 2770`): then the group may read and write what is made in
it. Others never may. What lies there already keeps its rights.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ALONE, TEAM = 0o077, 0o007
# The user's own umask, for what a process or its children make outside the home.
_USERS = "SRT_UMASK"


def keep(home: Path) -> None:
    """From here on, this process and its children make files and folders with the rights of this home."""
    before = os.umask(TEAM if is_team(home) else ALONE)
    os.environ.setdefault(_USERS, f"{before:o}")


def is_team(home: Path) -> bool:
    """Whether the home's group works there too."""
    return home.is_dir() and bool(home.stat().st_mode & stat.S_IWGRP)


@contextmanager
def restored() -> Iterator[None]:
    """After the block, files are made as before it."""
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
    """Within the block, files and folders are made as the user has them made elsewhere."""
    if (users := os.environ.get(_USERS)) is None:
        yield
        return
    before = os.umask(int(users, 8))
    try:
        yield
    finally:
        os.umask(before)


def give(path: Path) -> None:
    """Give a file, or a folder with all in it, the rights that the user's own umask leaves."""
    if (users := os.environ.get(_USERS)) is None:
        return
    for one in (path, *path.rglob("*")):
        one.chmod((0o777 if one.is_dir() else 0o666) & ~int(users, 8))


def share_databases(folder: Path) -> None:
    """Let the group write to the databases in a team's folder: SQLite makes its files 0644, less the umask."""
    if not is_team(folder):
        return
    for path in folder.rglob("*.db*"):
        with suppress(FileNotFoundError):  # a journal: it goes when its transaction ends
            facts = path.lstat()
            if stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & stat.S_IWGRP:
                path.chmod(stat.S_IMODE(facts.st_mode) | stat.S_IRGRP | stat.S_IWGRP)


def open_to_others(home: Path) -> str:
    """The chmod command that closes a folder which is open to more people than the rule allows; '' if it is not."""
    others = stat.S_IRWXO if is_team(home) else stat.S_IRWXO | stat.S_IRWXG
    if not home.is_dir() or not home.stat().st_mode & others:
        return ""
    return f"chmod -R {'o' if is_team(home) else 'go'}-rwx"
