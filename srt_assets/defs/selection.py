"""The asset `selected_set`: for each student, the verdict on every record and the texts it is trained on."""

import dagster as dg

from srt_assets.core.selection import decide
from srt_assets.defs import names
from srt_assets.defs.conditions import inputs_or_code_changed
from srt_assets.defs.resources import LakeResource
from srt_assets.defs.run_stage import run_stage


@dg.asset(
    name=names.SELECTED_SET,
    group_name=names.GROUP_SELECTION,
    kinds={"duckdb", "parquet"},
    partitions_def=names.students,
    deps=[names.STUDENT_SCORES, names.REFLECTED_RESPONSES],
    code_version=decide.CODE_VERSION,
    automation_condition=inputs_or_code_changed,
)
def selected_set(context: dg.AssetExecutionContext, lake: dg.ResourceParam[LakeResource]) -> dg.MaterializeResult:
    """What the student chose: `dbt_like_sql/models/marts/decisions.sql` run for it, and the texts of what was kept."""
    store, student = lake.open(), context.partition_key
    return run_stage(
        context,
        lambda progress: decide.run(lake.settings(), store, progress, student=student),
        lambda: decide.describe(store, student),
    )
