"""One flipped bit in a part: what a query says, with the sums of this program and without any.

    python benchmarks/bit_flips.py HOME [FLIPS]

Works on a copy of the home's lake. `without sums`: DuckDB alone reads the part; `other rows` is what would go unseen.
"""

import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import duckdb

from srt_assets.core import integrity
from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.parquet import row_content_hash
from srt_assets.core.tables import TABLES
from srt_assets.core.upgrade import upgrade

NAMES = ("raw_records", "teacher_calls", "candidates", "selected_set")


def with_sums(lake: Lake, name: str, part: Path) -> str:
    """As `srt sql` reads it."""
    try:
        with lake.connect() as con:
            con.execute(f"SELECT count(*), max(t::VARCHAR) FROM {name} t").fetchall()
    except (duckdb.Error, UserError) as error:
        return "named" if part.name in str(error) else "another error"
    return "silent"


def without_sums(name: str, part: Path, before: str) -> str:
    try:
        return "same rows" if row_content_hash(TABLES[name], [part]) == before else "other rows"
    except Exception:  # noqa: BLE001 - a damaged page has DuckDB raise anything
        return "an error"


def main() -> None:
    source, flips = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 120
    dice = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(Path(folder) / "home")
        shutil.copytree(source / "lake", lake.root)
        upgrade(lake.home)
        print(f"{'table':<16}{'flips':>6}  {'with sums':<34}without sums")
        for name in NAMES:
            found: Counter[str] = Counter()
            alone: Counter[str] = Counter()
            parts = lake.parts(name)
            for _ in range(flips):
                part = dice.choice(parts)
                good = part.read_bytes()
                before = row_content_hash(TABLES[name], [part])
                bad = bytearray(good)
                bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
                part.write_bytes(bad)
                found[with_sums(lake, name, part)] += 1
                alone[without_sums(name, part, before)] += 1
                part.write_bytes(good)
            integrity._seen.clear()
            shown = (", ".join(f"{n} {what}" for what, n in sorted(c.items())) for c in (found, alone))
            print("{:<16}{:>6}  {:<34}{}".format(name, flips, *shown), flush=True)


if __name__ == "__main__":
    main()
