"""A run of several students at once, or of none where one is needed, does nothing and says why in one sentence."""

import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from selection_lake import small_lake

from srt_assets.core.selection import decide
from srt_assets.definitions import build_defs
from srt_assets.defs import names
from srt_assets.defs.failures import cause
from srt_assets.settings import Settings

RANGE = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "c"}


@pytest.fixture
def settings(tmp_path: Path, home: Path) -> Settings:
    (tmp_path / "data.json").write_text(json.dumps([{"instruction": "Name a tree.", "input": "", "output": "Oak."}]))
    return Settings.model_validate(
        {"project": {"home": home}, "datasets": [{"name": "d", "path": str(tmp_path / "data.json")}]}
    )


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        made.add_dynamic_partitions(names.students.name or "", ["a", "b", "c"])
        yield made


def ran(settings: Settings, instance: dg.DagsterInstance, job: str, **how: object) -> dg.ExecuteInProcessResult:
    found = build_defs(settings).resolve_job_def(job)
    return found.execute_in_process(instance=instance, raise_on_error=False, **how)


AT_ONCE = "this run is for the students a to c at once, and a run makes one student; nothing was done"
NAMES_NONE = "student_checkpoint is for one student, and this run names none; nothing was done"


@pytest.mark.parametrize(
    ("job", "tags", "told"),
    [
        ("everything", RANGE, AT_ONCE),
        ("student_side", {**RANGE, "dagster/asset_partition_range_end": "a"}, "students a to a at once"),
        ("everything", {}, NAMES_NONE),
        ("student_side", {}, NAMES_NONE),
    ],
)
def test_nothing_is_done_and_the_reason_is_one_sentence(
    settings: Settings, instance: dg.DagsterInstance, job: str, tags: dict[str, str], told: str
) -> None:
    done = ran(settings, instance, job, tags=tags)
    assert not done.success
    said = {cause(event) for event in done.get_step_failure_events()}
    assert len(said) == 1 and told in said.pop()
    assert not done.get_asset_materialization_events() and not done.get_asset_check_evaluations()
    assert not (settings.home / "lake").exists()


def test_what_all_students_share_needs_no_student(settings: Settings, instance: dg.DagsterInstance) -> None:
    done = ran(settings, instance, "everything", asset_selection=[dg.AssetKey("raw_dataset")])
    assert done.success


def test_a_check_alone_is_of_one_student_too(home: Path, instance: dg.DagsterInstance, settings: Settings) -> None:
    lake = small_lake(home, students=("a", "b"))
    for slug in ("a", "b"):
        decide.STAGE.run(settings, lake, slug)
    checks = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("selected_set"), "counts_reconcile"))
    defs = build_defs(settings)
    alone = dg.Definitions(
        assets=defs.assets,
        asset_checks=defs.asset_checks,
        jobs=[dg.define_asset_job("check", checks)],
        resources=defs.resources,
    ).resolve_job_def("check")
    for tags in (RANGE, {}):
        done = alone.execute_in_process(instance=instance, raise_on_error=False, tags=tags)
        [event] = done.get_step_failure_events()
        assert "nothing was done" in cause(event) and not done.get_asset_check_evaluations()
    of_b = {"dagster/partition": "b"}
    found = alone.execute_in_process(instance=instance, tags=of_b).get_asset_check_evaluations()
    assert [(one.passed, one.partition) for one in found] == [(True, "b")]
