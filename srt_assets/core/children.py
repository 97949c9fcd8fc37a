"""How processes of ours are started: what they may import, and how their threads wait.

No Python file in the current folder is taken for a module. `python -m` and `python -c`, by which multiprocessing,
torch's launcher and Dagster start theirs, look for modules in the current folder first. That is where somebody's data
lies, and a `secrets.py` beside it would run. What the environment variable PYTHONPATH names on purpose still counts.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# A path on which nothing can be found. While Dagster imports our definitions it takes the first entry of Python's path
# away, believing it to be the current folder: without that folder it would be one of the user's.
NOWHERE = os.devnull


def safe(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a process needs beside these, so that it and those it starts do not look there."""
    # An empty entry, as in `PYTHONPATH=$PYTHONPATH:/mine`, would be the current folder too.
    named = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry not in ("", NOWHERE)]
    # In full: they may be started in another folder.
    named = [str(Path(entry).absolute()) for entry in named]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join([NOWHERE, *named])}


def protect() -> None:
    """Start every process from now on like that. For our own programs, not for a program that only imports us."""
    os.environ.update(safe(os.environ))
    # Children of multiprocessing get this path, whatever their variables say.
    if sys.flags.safe_path and sys.path[:1] != [NOWHERE]:
        sys.path.insert(0, NOWHERE)


def wait_asleep() -> None:
    """Let threads of arithmetic sleep while they wait, here and in every process started from now on.

    Threads that wait by spinning stop each other as soon as anything else computes on the machine: with both of two
    cores in use by others, scoring ran at 43 tokens/s spinning and at 202 sleeping. OpenMP reads it once, when torch is
    loaded. What the user has set wins.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def protected() -> Iterator[None]:
    """Start processes like that within the block, also in another program than `srt`."""
    variables = safe(os.environ)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
