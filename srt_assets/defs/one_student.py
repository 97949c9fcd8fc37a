"""The student of a run. A run for several students, or one that needs a student and names none, fails at once.

A run is for one student only: a step has one result, so a failure for one student would affect the others, and Dagster
would give all of them the same data version.
"""

import dagster as dg

from srt_assets.core.errors import UserError
from srt_assets.defs import names

_FIRST, _LAST = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def student_of(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, needed: bool = False) -> str:
    """The student of this run; '' if it names none and no asset in it needs one. `needed`: the step needs one.

    Called before a step does anything, also on the teacher side, because a run that must fail must not pay. UserError
    if the run names several students, or none although it needs one.
    """
    tags = context.run.tags
    if _FIRST in tags or _LAST in tags:
        raise UserError(
            f"this run is for the students {tags.get(_FIRST, '?')} to {tags.get(_LAST, '?')} at once, and a run makes "
            "one student; nothing was done",
            "launch it as multiple runs, one for each partition; or `srt run`, which takes one after the other",
        )
    if context.has_partition_key:
        return context.partition_key
    in_it = context.job_def.asset_layer.executable_asset_keys
    made = [name for name in names.STUDENT_SIDE if dg.AssetKey(name) in in_it]
    if made or needed:
        raise UserError(
            f"{made[0] if made else 'this check'} is for one student, and this run names none; nothing was done",
            "choose a student (a partition) when you launch it, or `srt run --student SLUG`",
        )
    return ""
