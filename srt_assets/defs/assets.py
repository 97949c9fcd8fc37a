"""The assets: one Dagster asset for each stage in `core/stages.py`. The work itself is in the stage."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import dagster as dg

from srt_assets.core import stages
from srt_assets.core.outcome import Check, Checked
from srt_assets.core.stage import Stage
from srt_assets.core.training import launch
from srt_assets.defs import names
from srt_assets.defs.conditions import code_changed, inputs_or_code_changed
from srt_assets.defs.failures import stop_if_failed
from srt_assets.defs.resources import LakeResource
from srt_assets.defs.run_stage import run_stage


def assets() -> list[dg.AssetsDefinition]:
    """The graph, in order."""
    return [asset_of(stage) for stage in stages.STAGES]


def asset_of(stage: Stage) -> dg.AssetsDefinition:
    """The Dagster asset of a stage."""

    @dg.asset(
        name=stage.asset,
        description=stage.__doc__,
        group_name=stage.group,
        kinds=set(stage.kinds),
        deps=list(stage.needs),
        code_version=stage.version,
        pool=stage.pool,
        partitions_def=names.students if stage.per_student else None,
        automation_condition=_condition(stage),
        check_specs=[
            dg.AssetCheckSpec(
                c.name,
                asset=stage.asset,
                blocking=c.blocking,
                description=c.description,
                # Without it the UI would show the newest result of any student for all students.
                partitions_def=names.students if stage.per_student else None,
            )
            for c in stage.checks
        ],
    )
    def asset(
        context: dg.AssetExecutionContext, lake: dg.ResourceParam[LakeResource]
    ) -> Iterator[dg.MaterializeResult]:
        done, checked = run_stage(context, stage, lake.settings(), through_pipes(context))
        results = _results(stage.checks, checked)
        yield done._replace(check_results=results)
        stop_if_failed(results)

    return asset


def _condition(stage: Stage) -> dg.AutomationCondition | None:
    if not stage.per_student:  # it may cost money: only a user or the nightly schedule requests it
        return None
    return inputs_or_code_changed if stage.needs else code_changed


def _results(checks: Sequence[Check], checked: Sequence[Checked]) -> list[dg.AssetCheckResult]:
    return [_result(next(c for c in checks if c.name == one.name), one) for one in checked]


def _result(check: Check, found: Checked) -> dg.AssetCheckResult:
    facts = ", ".join(f"{name} {value}" for name, value in found.facts.items())
    return dg.AssetCheckResult(
        check_name=check.name,
        passed=found.passed,
        severity=dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN,
        description=None if found.passed else f"not met: {check.description} Found: {facts}\n  -> {check.remedy}",
        metadata=dict(found.facts),
    )


def through_pipes(context: dg.AssetExecutionContext) -> Callable[[Sequence[str], Mapping[str, str]], int]:
    """A launcher of child processes that report through Dagster Pipes and are interrupted with this step."""

    def start(command: Sequence[str], env: Mapping[str, str]) -> int:
        with dg.open_pipes_session(
            context=context,
            context_injector=dg.PipesEnvContextInjector(),
            message_reader=dg.PipesTempFileMessageReader(),
        ) as session:
            return launch.plain(command, {**env, **session.get_bootstrap_env_vars()})

    return start
