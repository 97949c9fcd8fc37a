"""Environment of the child processes: where they look for modules, and how their threads wait.

Child processes never import a Python file from the current folder. Multiprocessing, torch's launcher and Dagster start
children with `python -m` and `python -c`, which look for modules in the current folder first. The user's data lies
there, and a `secrets.py` beside it would run. Folders named in the environment variable PYTHONPATH still count.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# A path that holds no modules. While Dagster imports the definitions it removes the first entry of sys.path, because it
# takes that entry for the current folder. Without this placeholder it would remove an entry that the user needs.
NOWHERE = os.devnull


def safe(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to `environment`, so that a process and its children import nothing from the current folder."""
    # An empty entry, as in `PYTHONPATH=$PYTHONPATH:/mine`, also means the current folder.
    named = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry not in ("", NOWHERE)]
    # Absolute paths, because the process may be started in another folder.
    named = [str(Path(entry).absolute()) for entry in named]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join([NOWHERE, *named])}


def protect() -> None:
    """Apply `safe` to this process and to every child it starts. For `srt` itself, not when imported as a library."""
    os.environ.update(safe(os.environ))
    # multiprocessing passes sys.path on to its children, whatever their environment says.
    if sys.flags.safe_path and sys.path[:1] != [NOWHERE]:
        sys.path.insert(0, NOWHERE)


def wait_asleep() -> None:
    """Let OpenMP threads sleep while they wait, in this process and in the children it starts.

    Spinning threads slow each other down as soon as other programs use the same cores: with both of two cores busy,
    scoring ran at 43 tokens/s with spinning threads and at 202 tokens/s with sleeping ones. OpenMP reads the variable
    once, when torch is loaded. A value set by the user wins.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def protected() -> Iterator[None]:
    """Apply `safe` to the processes started within the block; also for programs that import srt_assets as a library."""
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
