"""How processes of ours are started: so that no Python file in the current folder is taken for a module.

`python -m` and `python -c`, by which multiprocessing, torch's launcher and Dagster start theirs, look for modules in
the current folder first. That is where somebody's data lies, and a `secrets.py` beside it would run. What the
environment variable PYTHONPATH names on purpose still counts.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# A path on which nothing can be found. While Dagster imports our definitions it takes the first entry of Python's path
# away, believing it to be the current folder: without that folder it would be one of the user's.
NOWHERE = os.devnull


def safe(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a process needs beside these, so that it and those it starts do not look there."""
    # An empty entry, as in `PYTHONPATH=$PYTHONPATH:/mine`, would be the current folder too.
    named = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry not in ("", NOWHERE)]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join([NOWHERE, *named])}


def protect() -> None:
    """Start every process from now on like that. For our own programs, not for a program that only imports us."""
    os.environ.update(safe(os.environ))
    # Children of multiprocessing get this path, whatever their variables say.
    if sys.flags.safe_path and sys.path[:1] != [NOWHERE]:
        sys.path.insert(0, NOWHERE)


@contextmanager
def protected() -> Iterator[None]:
    """Start processes like that within the block, whoever's program this is."""
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
