"""Wires all definitions: `build_defs(settings)` makes the graph, and Dagster loads `defs`."""

from typing import Any

import dagster as dg

from srt_assets.core.children import protect, wait_asleep
from srt_assets.defs import assets, automation, jobs, sql_models, status
from srt_assets.defs.resources import LakeResource
from srt_assets.settings import Settings, load_settings


def build_defs(settings: Settings | None = None, tick_s: int = automation.TICK_S, **overrides: Any) -> dg.Definitions:
    """The whole graph. Sensors are evaluated every `tick_s` seconds; `overrides` replace resources by name (tests)."""
    settings = settings or load_settings()
    return dg.Definitions(
        assets=[
            *assets.assets(),
            *sql_models.assets(),
            status.pipeline_status,
        ],
        asset_checks=[*sql_models.checks()],
        jobs=jobs.jobs(),
        sensors=automation.sensors(settings, tick_s),
        schedules=automation.schedules(settings),
        resources={"lake": LakeResource(settings), **overrides},
    )


# Dagster's code server imports this module; runs and their steps are its child processes.
protect()
wait_asleep()
defs = build_defs()
