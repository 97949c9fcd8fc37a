"""The code location of the live test: the real one with short ticks, and a count of what is given to a student.

Every process that loads it (code servers, run workers, steps) appends to the file SRT_LIVE_PASSES names; while the file
SRT_LIVE_SLOW names is there, scoring is slow enough to be killed in the middle.
"""

import os
import time
from pathlib import Path

from srt_assets.core.scoring import stage as scores
from srt_assets.definitions import build_defs

make = scores.StudentScores.make


def counted(stage, work):
    from srt_assets.core.scoring import scorer

    original = scorer.Scorer.score

    def count(self, passes, *rest, **more):
        found = original(self, passes, *rest, **more)
        with Path(os.environ["SRT_LIVE_PASSES"]).open("a") as file:
            file.write(f"{work.student} {len(passes)}\n")
        while Path(os.environ["SRT_LIVE_SLOW"]).exists():
            time.sleep(0.1)
        return found

    scorer.Scorer.score = count
    return make(stage, work)


scores.StudentScores.make = counted
defs = build_defs(tick_s=1)
