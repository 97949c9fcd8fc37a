"""The asset `student_checkpoint`: for each student, what it is by content."""

import dagster as dg

from srt_assets.core.student import checkpoints, watch
from srt_assets.defs import names
from srt_assets.defs.conditions import code_changed
from srt_assets.defs.resources import LakeResource
from srt_assets.defs.run_stage import run_stage


@dg.asset(
    name=names.STUDENT_CHECKPOINT,
    group_name=names.GROUP_STUDENTS,
    kinds={"huggingface"},
    partitions_def=names.students,
    code_version=checkpoints.VERSION,
    automation_condition=code_changed,
)
def student_checkpoint(context: dg.AssetExecutionContext, lake: dg.ResourceParam[LakeResource]) -> dg.MaterializeResult:
    """The student model that scores, selects and is finetuned: config, tokenizer and weights, checked and hashed."""
    store, student = lake.open(), context.partition_key

    def stage(progress):
        watch.register(lake.settings(), store, student)
        return checkpoints.run(lake.settings(), store, student, progress)

    return run_stage(context, stage, lambda: checkpoints.describe(store, student))
