"""The asset `finetuned_checkpoint` and its checks: the training process is started through Dagster Pipes."""

import math
from collections.abc import Mapping, Sequence

import dagster as dg
from dagster._core.errors import DagsterPipesExecutionError  # exported nowhere

from srt_assets.core.training import results, stage
from srt_assets.core.training.launch import Launcher
from srt_assets.defs import names
from srt_assets.defs.conditions import inputs_or_code_changed
from srt_assets.defs.metadata import png_uri
from srt_assets.defs.resources import LakeResource
from srt_assets.defs.run_stage import run_stage

ENDS_WELL = "loss_is_finite"
LEARNED = "held_out_loss_fell"


@dg.asset(
    name=names.FINETUNED_CHECKPOINT,
    group_name=names.GROUP_TRAINING,
    kinds={"huggingface", "pytorch"},
    partitions_def=names.students,
    deps=[names.SELECTED_SET, names.STUDENT_CHECKPOINT],
    code_version=stage.VERSION,
    pool=names.POOL_DEVICE,
    automation_condition=inputs_or_code_changed,
    check_specs=[
        dg.AssetCheckSpec(
            ENDS_WELL,
            asset=names.FINETUNED_CHECKPOINT,
            blocking=True,
            description="Every step's loss is a finite number.",
        ),
        dg.AssetCheckSpec(
            LEARNED,
            asset=names.FINETUNED_CHECKPOINT,
            description="The loss on records that never entered training is lower than before.",
        ),
    ],
)
def finetuned_checkpoint(
    context: dg.AssetExecutionContext, lake: dg.ResourceParam[LakeResource]
) -> dg.MaterializeResult:
    """The student trained on what it selected: an ordinary Hugging Face checkpoint with its training record."""
    store, student = lake.open(), context.partition_key
    result = run_stage(
        context,
        lambda progress: stage.run(lake.settings(), store, student, through_pipes(context), progress),
        lambda: results.describe(store, student),
    )
    curves = results.curve(store, student)
    return dg.MaterializeResult(
        metadata={**(result.metadata or {}), "loss_curve": dg.MetadataValue.md(f"![loss by step]({loss_png(curves)})")},
        data_version=result.data_version,
        check_results=[*checks(results.describe(store, student).numbers, curves)],
    )


def through_pipes(context: dg.AssetExecutionContext) -> Launcher:
    """A launcher whose process speaks to this step through Dagster Pipes and is interrupted with it."""

    def launch(command: Sequence[str], env: Mapping[str, str]) -> int:
        client = dg.PipesSubprocessClient(termination_timeout_seconds=60)
        try:
            client.run(context=context, command=command, env=env)
        except DagsterPipesExecutionError as error:
            # The exit code is only in its message.
            return int(str(error).rpartition(" ")[2])
        return 0

    return launch


def checks(
    numbers: Mapping[str, float | int | str], curves: Mapping[str, Sequence[tuple[int, float]]]
) -> list[dg.AssetCheckResult]:
    """Blocking: finite losses. A warning: the held-out loss did not fall (or nothing was held out)."""
    bad = [f"{arm} step {step}" for arm, line in curves.items() for step, loss in line if not math.isfinite(loss)]
    before, after = numbers.get("eval_loss_before"), numbers.get("eval_loss_after")
    measured = isinstance(before, float) and isinstance(after, float)
    return [
        dg.AssetCheckResult(
            check_name=ENDS_WELL, passed=not bad, metadata={"steps_without_a_number": ", ".join(bad[:20]) or "none"}
        ),
        dg.AssetCheckResult(
            check_name=LEARNED,
            passed=measured and after < before,  # type: ignore[operator]
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"before": before, "after": after} if measured else {"why": "no record was held out"},
        ),
    ]


def loss_png(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Training loss by step, a line an arm, as a data URI."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.6))
    axes = figure.subplots()
    for arm, line in curves.items():
        axes.plot(
            [step for step, _ in line], [loss for _, loss in line], label=arm, marker="." if len(line) < 30 else ""
        )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per response token)")
    axes.legend(fontsize=7)
    return png_uri(figure)
