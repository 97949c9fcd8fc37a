"""The sensor that renews `pipeline_status`: after runs that did not make it themselves, never during one."""

from collections.abc import Iterator

import dagster as dg
import pytest

from srt_assets.defs import names
from srt_assets.defs.status import status_after_runs

NAME = "status_after_runs"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@dg.asset(name=names.PIPELINE_STATUS)
def table() -> None: ...


@dg.asset
def other() -> None:
    raise dg.Failure("out of luck")


DEFS = dg.Definitions(assets=[table, other])


def run(instance: dg.DagsterInstance, asset: str, **tags: str) -> dg.ExecuteInProcessResult:
    return DEFS.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, asset_selection=[dg.AssetKey(asset)], raise_on_error=False, tags=tags
    )


def tick(instance: dg.DagsterInstance) -> str | None:
    """The run key it asks with, or None."""
    found = status_after_runs(dg.DefaultSensorStatus.RUNNING, 1)(dg.build_sensor_context(instance=instance))
    return found.run_key if isinstance(found, dg.RunRequest) else None


def test_no_run_no_request(instance: dg.DagsterInstance) -> None:
    assert tick(instance) is None


def test_a_failed_run_is_followed_once(instance: dg.DagsterInstance) -> None:
    failed = run(instance, "other").run_id
    assert tick(instance) == failed == tick(instance), "the same key: the daemon makes one run of it"
    run(instance, names.PIPELINE_STATUS, **{"dagster/sensor_name": NAME})
    assert tick(instance) is None


def test_a_run_that_made_the_table_itself_needs_no_other(instance: dg.DagsterInstance) -> None:
    run(instance, names.PIPELINE_STATUS)
    assert tick(instance) is None
    failed = run(instance, "other").run_id
    assert tick(instance) == failed


def test_while_a_run_is_going_on_it_waits(instance: dg.DagsterInstance) -> None:
    run(instance, "other")
    job = DEFS.resolve_implicit_global_asset_job_def()
    going_on = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert tick(instance) is None
    instance.report_run_failed(going_on)
    assert tick(instance) == going_on.run_id
