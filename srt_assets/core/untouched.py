"""What has lain untouched for long, on a clock that may be set: nothing goes because the clock was wrong for an hour.

Times of files are the wall clock's, and no other is shared by processes and machines. So one look is not believed: only
what a look of a day before has found as old too is old. It follows that nothing goes earlier than a day after a clock
was set forward, and that a clock set back delays the end of things and keeps nothing for ever.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from srt_assets.core.files import OWN, NoFile, read_text
from srt_assets.core.locks import replace_text

AGAIN_S = 24 * 3600.0


def untouched(touched: Mapping[str, float], after_s: float, memory: Path) -> list[str]:
    """The names whose last touch lies more than `after_s` seconds back, as this and an earlier look have found.

    `touched`: seconds since the epoch by name. A time that has not come yet counts from the first look. `memory`: the
    file that keeps earlier looks; what is not asked about any more is forgotten.
    """
    now, before = time.time(), _read(memory)
    suspects: dict[str, list[float]] = {}
    old = []
    for name, at in touched.items():
        to_come = at > now + AGAIN_S
        if not to_come and now - at <= after_s:
            continue
        seen_at, since = before.get(name, [at, now])
        if seen_at != at or since > now:  # touched again, or the clock was set back
            since = now
        suspects[name] = [at, since]
        if now - since >= (after_s if to_come else AGAIN_S):
            old.append(name)
    if suspects != before:
        replace_text(memory, json.dumps(suspects))
    return old


def _read(memory: Path) -> dict[str, list[float]]:
    try:
        found = json.loads(read_text(memory, OWN))
        return {str(name): [float(at), float(since)] for name, (at, since) in found.items()}
    except (NoFile, OSError, ValueError, TypeError, AttributeError):  # none yet, or not ours: the first look is now
        return {}
