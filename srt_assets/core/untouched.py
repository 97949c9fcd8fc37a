"""Finds files that nothing has touched for long, also if the clock was wrong for some hours.

File times come from the wall clock, and processes and machines share no other clock. So a single look is not trusted: a
file counts as old only if a look at least one day earlier found it old too. After a clock is set forward, nothing is
removed for one day. After a clock is set back, removal is delayed but still happens. Deleting is left to the callers.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from srt_assets.core.files import OWN, NoFile, read_text
from srt_assets.core.locks import replace_text

AGAIN_S = 24 * 3600.0


def untouched(touched: Mapping[str, float], after_s: float, memory: Path) -> list[str]:
    """The names that were last touched more than `after_s` seconds ago, according to this and an earlier look.

    `touched`: seconds since the epoch by name; a time in the future counts from the first look. `memory`: the file that
    stores earlier looks; names that are not in `touched` are dropped from it.
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
    except (NoFile, OSError, ValueError, TypeError, AttributeError):  # missing or unreadable: this is the first look
        return {}
