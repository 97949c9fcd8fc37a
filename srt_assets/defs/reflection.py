"""The assets `reflected_instructions` and `reflected_responses`: the teacher side, paid once for all students."""

import dagster as dg

from srt_assets.core.teacher import instructions, responses
from srt_assets.defs import names
from srt_assets.defs.resources import LakeResource
from srt_assets.defs.run_stage import run_stage


@dg.asset(
    name=names.REFLECTED_INSTRUCTIONS,
    group_name=names.GROUP_REFLECTION,
    kinds={"litellm", "parquet"},
    deps=[names.RAW_DATASET],
    code_version=instructions.VERSION,
    pool=names.POOL_TEACHER,
)
def reflected_instructions(
    context: dg.AssetExecutionContext, lake: dg.ResourceParam[LakeResource]
) -> dg.MaterializeResult:
    """Every record as given, and the teacher's new instruction with its own answer."""
    store = lake.open()
    return run_stage(
        context,
        lambda progress: instructions.run(lake.settings(), store, progress),
        lambda: instructions.describe(store),
    )


@dg.asset(
    name=names.REFLECTED_RESPONSES,
    group_name=names.GROUP_REFLECTION,
    kinds={"litellm", "parquet"},
    deps=[names.RAW_DATASET, names.REFLECTED_INSTRUCTIONS],
    code_version=responses.VERSION,
    pool=names.POOL_TEACHER,
)
def reflected_responses(
    context: dg.AssetExecutionContext, lake: dg.ResourceParam[LakeResource]
) -> dg.MaterializeResult:
    """The teacher's better answers: to the instruction as given, and to the reflected one."""
    store = lake.open()
    return run_stage(
        context,
        lambda progress: responses.run(lake.settings(), store, progress),
        lambda: responses.describe(store),
    )
