"""The sensor that renews `pipeline_status`: after runs that did not make it themselves, never during one."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from srt_assets.core.status import Standing
from srt_assets.defs import names
from srt_assets.defs.resources import LakeResource
from srt_assets.defs.status import pipeline_status, status_after_runs
from srt_assets.settings import Project, Settings

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


def test_a_run_that_ends_while_the_table_is_being_read_is_in_the_next_one(
    instance: dg.DagsterInstance, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[str] = []

    def another_ends(*_: object) -> list:
        late.append(run(instance, "other").run_id)
        return []

    monkeypatch.setattr("srt_assets.core.status.standings", another_ends)
    upstream = [dg.AssetSpec("reflected_responses"), dg.AssetSpec("finetuned_checkpoint")]
    lake = LakeResource(Settings(project=Project(home=home)))
    dg.materialize([*upstream, pipeline_status], instance=instance, resources={"lake": lake})
    assert late and tick(instance) == late[0]


def test_a_run_whose_tags_change_after_its_end_is_no_news(instance: dg.DagsterInstance) -> None:
    first, second = run(instance, "other").run_id, run(instance, "other").run_id
    assert tick(instance) == second
    run(instance, names.PIPELINE_STATUS, **{"dagster/sensor_name": NAME})
    instance.add_run_tags(first, {"dagster/did_retry": "true"})
    assert tick(instance) is None


def test_a_clock_that_was_set_back_does_not_stop_it(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import UTC, datetime, timedelta

    from dagster._core.test_utils import freeze_time

    with freeze_time(datetime.now(UTC) + timedelta(days=1)):
        before = {run(instance, name).run_id for name in ("other", names.PIPELINE_STATUS)}
    failed = run(instance, "other").run_id
    assert tick(instance) == failed
    run(instance, names.PIPELINE_STATUS, **{"dagster/sensor_name": NAME})
    assert tick(instance) in before, "once more, and then its key has been used"
    failed = run(instance, "other").run_id
    assert tick(instance) == failed


def test_a_reason_of_many_lines_stays_in_one(
    instance: dg.DagsterInstance, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = "a worker failed:\n# Traceback | `x`\n" + "  File ...\n" * 500
    monkeypatch.setattr("srt_assets.core.status.standings", lambda *_: [Standing("a", "s", "failed", why)])
    upstream = [dg.AssetSpec("reflected_responses"), dg.AssetSpec("finetuned_checkpoint")]
    lake = LakeResource(Settings(project=Project(home=home)))
    done = dg.materialize([*upstream, pipeline_status], instance=instance, resources={"lake": lake})
    [made] = done.asset_materializations_for_node(names.PIPELINE_STATUS)
    [row] = str(made.metadata["why"].value).splitlines()
    assert row.startswith(r"- a of s: a worker failed: \# Traceback \| \`x\` File") and len(row) < 600
