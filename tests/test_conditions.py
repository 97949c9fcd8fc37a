"""When the student side is requested by itself: the table of events, on a graph of the same shape."""

from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.events import AssetMaterializationPlannedData  # exported nowhere

from srt_assets.defs import names
from srt_assets.defs.conditions import code_changed, inputs_or_code_changed

POOL, SCORES = "pool", "scores"


class World:
    """An unpartitioned asset above one with a partition a student; the daemon's tick without a daemon."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.cursor, self.code, self.passes, self.fails = instance, None, "1", True, False

    def defs(self) -> dg.Definitions:
        check = dg.AssetCheckSpec("sound", asset=POOL, blocking=True)

        @dg.asset(name=POOL, check_specs=[check])
        def pool() -> dg.MaterializeResult:
            result = dg.AssetCheckResult(check_name="sound", passed=self.passes)
            return dg.MaterializeResult(data_version=dg.DataVersion(self.content), check_results=[result])

        @dg.asset(
            name=SCORES,
            deps=[POOL],
            partitions_def=names.students,
            code_version=self.code,
            automation_condition=inputs_or_code_changed,
        )
        def scores() -> dg.MaterializeResult:
            if self.fails:
                raise dg.Failure("no such architecture")
            return dg.MaterializeResult(data_version=dg.DataVersion(self.code))

        return dg.Definitions(assets=[pool, scores])

    def make_pool(self, content: str, passes: bool = True) -> None:
        self.content, self.passes = content, passes
        job = self.defs().resolve_implicit_global_asset_job_def()
        job.execute_in_process(instance=self.instance, asset_selection=[dg.AssetKey(POOL)], raise_on_error=False)

    def add(self, *students: str) -> None:
        self.instance.add_dynamic_partitions(names.students.name or "", list(students))

    def tick(self) -> set[str]:
        """The students requested now; their runs happen at once."""
        found = dg.evaluate_automation_conditions(self.defs(), self.instance, cursor=self.cursor)
        self.cursor = found.cursor
        due = found.get_requested_partitions(dg.AssetKey(SCORES))
        job = self.defs().resolve_implicit_global_asset_job_def()
        for student in sorted(due):
            job.execute_in_process(
                instance=self.instance,
                asset_selection=[dg.AssetKey(SCORES)],
                partition_key=student,
                raise_on_error=False,
            )
        return due

    def settled(self) -> None:
        """Two students, all made, nothing left to ask for."""
        assert self.tick() == set()
        self.add("p0", "p1")
        self.make_pool("one")
        assert self.tick() == {"p0", "p1"}
        assert self.tick() == set()


@pytest.fixture
def world() -> Iterator[World]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield World(instance)


def test_a_student_that_was_there_before_its_input(world: World) -> None:
    world.add("p0")
    assert world.tick() == set()
    world.make_pool("one")
    assert world.tick() == {"p0"}
    assert world.tick() == set()


def test_a_new_student_is_requested_alone(world: World) -> None:
    world.settled()
    world.add("p2")
    assert world.tick() == {"p2"}
    assert world.tick() == set()


def test_an_input_made_again_with_equal_content_requests_nobody(world: World) -> None:
    world.settled()
    world.make_pool("one")
    assert world.tick() == set()


def test_new_content_or_new_code_requests_everybody_once(world: World) -> None:
    world.settled()
    world.make_pool("two")
    assert world.tick() == {"p0", "p1"}
    assert world.tick() == set()
    world.code = "2"
    assert world.tick() == {"p0", "p1"}
    assert world.tick() == set()


def test_while_a_blocking_check_of_the_input_fails_nobody_is_requested(world: World) -> None:
    world.settled()
    world.make_pool("three", passes=False)
    assert world.tick() == set() and world.tick() == set()
    world.make_pool("three", passes=True)
    assert world.tick() == {"p0", "p1"}


def test_a_student_that_failed_is_not_tried_at_every_tick(world: World) -> None:
    world.settled()
    world.fails = True
    world.add("broken")
    assert world.tick() == {"broken"}
    world.make_pool("two")
    world.fails = False
    assert world.tick() == {"p0", "p1"}
    assert world.tick() == set()


def test_a_run_that_was_stopped_is_not_asked_for_again_until_something_changes(world: World) -> None:
    world.settled()
    world.add("p2")
    job = world.defs().resolve_implicit_global_asset_job_def()
    run = world.instance.create_run_for_job(
        job,
        tags={"dagster/partition": "p2"},
        status=dg.DagsterRunStatus.STARTED,
        asset_selection=frozenset({dg.AssetKey(SCORES)}),
    )
    planned = AssetMaterializationPlannedData(dg.AssetKey(SCORES), partition="p2")
    event = dg.DagsterEvent.build_asset_materialization_planned_event(run.job_name, SCORES, planned)
    world.instance.report_dagster_event(event, run_id=run.run_id)
    assert world.tick() == set()
    world.instance.report_run_canceled(run)
    assert world.tick() == set() and world.tick() == set()
    world.make_pool("two")
    assert world.tick() == {"p0", "p1", "p2"}


def test_a_student_whose_run_is_about_to_be_made_is_left_to_the_sensor_that_added_it() -> None:
    def graph(code: str) -> dg.Definitions:
        @dg.asset(partitions_def=names.students, code_version=code, automation_condition=code_changed)
        def checkpoint() -> None: ...

        @dg.asset(deps=[checkpoint], partitions_def=names.students, automation_condition=inputs_or_code_changed)
        def scores() -> None: ...

        return dg.Definitions(assets=[checkpoint, scores])

    cursor, partitions = None, names.students.name or ""
    with dg.DagsterInstance.ephemeral() as instance:

        def tick(code: str) -> dict[str, set[str]]:
            nonlocal cursor
            found = dg.evaluate_automation_conditions(graph(code), instance, cursor=cursor)
            cursor = found.cursor
            due = {key: found.get_requested_partitions(dg.AssetKey(key)) for key in ("checkpoint", "scores")}
            return {key: students for key, students in due.items() if students}

        tick("1")
        instance.add_dynamic_partitions(partitions, ["old"])
        assert tick("1") == {} and tick("1") == {}
        job = graph("1").resolve_implicit_global_asset_job_def()
        job.execute_in_process(instance=instance, partition_key="old")
        assert tick("1") == {}
        # New code is for those who are there; it may find them in the same look.
        assert tick("2") == {"checkpoint": {"old"}, "scores": {"old"}}


def test_every_asset_of_the_student_side_has_the_condition() -> None:
    from srt_assets.definitions import defs

    expected = dict.fromkeys(names.STUDENT_SIDE, inputs_or_code_changed) | {names.STUDENT_CHECKPOINT: code_changed}
    for spec in defs.resolve_all_asset_specs():
        assert spec.automation_condition == expected.get(spec.key.to_user_string()), spec.key
