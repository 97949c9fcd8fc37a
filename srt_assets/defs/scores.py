"""The asset `student_scores` and its check: what each student thinks of every candidate."""

import dagster as dg

from srt_assets.core.student import describe, scores
from srt_assets.defs import names
from srt_assets.defs.conditions import inputs_or_code_changed
from srt_assets.defs.resources import LakeResource
from srt_assets.defs.run_stage import run_stage

COMPLETE = "every_candidate_has_a_score_or_a_status"


@dg.asset(
    name=names.STUDENT_SCORES,
    group_name=names.GROUP_SCORES,
    kinds={"pytorch", "parquet"},
    partitions_def=names.students,
    deps=[names.REFLECTED_RESPONSES, names.STUDENT_CHECKPOINT],
    code_version=scores.VERSION,
    pool=names.POOL_DEVICE,
    automation_condition=inputs_or_code_changed,
    check_specs=[
        dg.AssetCheckSpec(
            COMPLETE,
            asset=names.STUDENT_SCORES,
            blocking=True,
            description="One row a candidate; each pass has a finite loss over at least one token, or says why not.",
        )
    ],
)
def student_scores(context: dg.AssetExecutionContext, lake: dg.ResourceParam[LakeResource]) -> dg.MaterializeResult:
    """Summed losses of four passes for every candidate: the numbers IFD and r-IFD are made of."""
    store, student = lake.open(), context.partition_key
    result = run_stage(
        context,
        lambda progress: scores.run(lake.settings(), store, student, progress),
        lambda: describe.describe(store, student),
    )
    found = describe.faults(store, student)
    return dg.MaterializeResult(
        metadata=result.metadata,
        data_version=result.data_version,
        check_results=[dg.AssetCheckResult(check_name=COMPLETE, passed=not any(found.values()), metadata={**found})],
    )
