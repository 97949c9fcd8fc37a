"""Seconds and peak memory of reading rows in mixed forms, and of one form; beside another checkout, if one is named.

    python benchmarks/reading.py [--rows 1000000] [--against CHECKOUT]

Each reading is a process of its own; memory is its largest resident set. The rows are invented.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
TEXT = "The ferry to the island leaves at dawn, at noon and once more before the lamps are lit. " * 4


def _of(*turns: str, keys: tuple[str, str], roles: tuple[str, str]) -> list[dict[str, str]]:
    return [{keys[0]: roles[n % 2], keys[1]: text} for n, text in enumerate(turns)]


def alpaca(n: int) -> dict[str, Any]:
    return {"instruction": f"Tell me about ferry {n}.", "input": "" if n % 3 else "In short.", "output": f"{TEXT}{n}"}


def messages(n: int) -> dict[str, Any]:
    turns = (f"Ask about pier {n}.", f"{TEXT}{n}", "And?", "No.")[: 2 if n % 11 else 4]
    return {"id": n, "messages": _of(*turns, keys=("role", "content"), roles=("user", "assistant"))}


def sharegpt(n: int) -> dict[str, Any]:
    turns = _of(f"Where is pier {n}?", f"{TEXT}{n}", keys=("from", "value"), roles=("human", "gpt"))
    return {"id": f"c{n}", "conversations": turns, "source": "invented"}


def preference(n: int) -> dict[str, Any]:
    return {"prompt": f"Which pier, {n}?", "chosen": f"{TEXT}{n}", "rejected": "I forgot.", "score_chosen": 4.5}


def dolly(n: int) -> dict[str, Any]:
    return {"instruction": f"When, {n}?", "context": "At dawn." * (n % 2), "response": f"{TEXT}{n}", "category": "qa"}


FORMS = (alpaca, messages, sharegpt, preference, dolly)
FILES: dict[str, Callable[[int], Iterator[dict[str, Any]]]] = {
    "alpaca": lambda rows: (alpaca(n) for n in range(rows)),
    "mixed": lambda rows: (FORMS[n % len(FORMS)](n) for n in range(rows)),
}


def child(file: Path, home: Path) -> None:
    """Read a file into a home; print seconds, peak memory (MB), records."""
    from srt_assets.core.lake import Lake
    from srt_assets.core.records import raw
    from srt_assets.settings import Dataset, Project, Settings

    settings = Settings(project=Project(home=home), datasets=(Dataset(name="d", path=str(file)),))
    lake = Lake(home)
    raw.STAGE.wanted(settings, lake)  # the file's sum: no part of reading
    started = time.perf_counter()
    outcome = raw.STAGE.run(settings, lake)
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, outcome.manifest.rows]))


def measured(file: Path, checkout: Path) -> tuple[float, float, int]:
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, str(HERE), "--child", str(file), home]
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": str(checkout)}, check=True, stdout=subprocess.PIPE
        )
    seconds, memory, records = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory, records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--against", type=Path, help="a checkout of another version of this program")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return
    print(f"{'file':8}{'program':>10}{'rows':>10}{'records':>10}{'seconds':>9}{'us/row':>8}{'peak MB':>9}")
    for name, rows in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.jsonl"
            with file.open("w") as out:
                out.writelines(json.dumps(row) + "\n" for row in rows(given.rows))
            found = {}
            for program, checkout in (("this", HERE.parents[1]), ("other", given.against)):
                if checkout:
                    seconds, memory, records = found[program] = measured(file, checkout)
                    facts = f"{given.rows:>10,}{records:>10,}{seconds:>9.1f}{seconds / given.rows * 1e6:>8.1f}"
                    print(f"{name:8}{program:>10}{facts}{memory:>9.0f}")
            if len(found) == 2:
                print(f"{name:8}{'ratio':>10}{found['this'][0] / found['other'][0]:>29.2f} of the seconds")


if __name__ == "__main__":
    main()
