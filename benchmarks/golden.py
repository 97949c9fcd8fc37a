"""Compare protocol `official` with what the authors' script says, number for number.

    python benchmarks/golden.py --golden DIR --data cherry_alpaca_5_percent.json --student DIR [--limit N]

`--golden` holds files `official_<template>_<first>_<end>.jsonl`: one line a record with `loss` = [instruction,
response, instruction given response, response given instruction]. Exit code 1 if a loss is off by more than 1e-4.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path

from srt_assets.core.scoring.chunks import ChunkScorer, Item, Spec
from srt_assets.core.scoring.encoding import Texts

ORDER = ("instruction", "response", "instruction_given_response", "response_given_prompt")
TOLERANCE = 1e-4


def losses(scorer: ChunkScorer, records: list[dict]) -> list[list[float]]:
    """Mean losses of the four passes in the script's order; NaN where there is no number."""
    items = [
        Item(str(i), str(i), Texts(r["instruction"], r.get("input", ""), r["output"])) for i, r in enumerate(records)
    ]
    rows = scorer.score(items, scorer.encode(items)).rows
    return [[(row[f"sum_nll_{p}"] or math.nan) / (row[f"n_tokens_{p}"] or 1) for p in ORDER] for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("golden", "data", "student"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=None, help="only the first N records of each file")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    data = json.loads(options.data.read_text())
    failed = False
    for path in sorted(options.golden.glob("official_*.jsonl")):
        match = re.fullmatch(r"official_([a-z]+)_(\d+)_(\d+)\.jsonl", path.name)
        if not match:
            continue
        template, first, end = match[1], int(match[2]), int(match[3])
        golden = [json.loads(line)["loss"] for line in path.read_text().splitlines()][: options.limit]
        spec = Spec(options.student, template, "official", 2048, "float32", 0, options.cores)
        ours = losses(ChunkScorer(spec, options.device), data[first:end][: options.limit])
        compared, worst, missing = 0, 0.0, 0
        for theirs, own in zip(golden, ours, strict=True):
            for a, b in zip(theirs, own, strict=True):
                if math.isnan(a) != math.isnan(b):
                    missing += 1
                elif not math.isnan(a):
                    compared, worst = compared + 1, max(worst, abs(a - b))
        ok = worst <= TOLERANCE and not missing
        failed |= not ok
        print(
            f"{path.name}: {len(golden)} records, {compared} losses, largest difference {worst:.2e}, "
            f"{missing} that only one of us has: {'ok' if ok else 'FAILED'}"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
