"""A check of a student's asset looks at that student only: another one's fault does not hold it up."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

# No public name says what the checks of one partition gave.
from dagster._core.event_api import PartitionKeyFilter
from selection_lake import small_lake

from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.outcome import Outcome
from srt_assets.core.scoring import describe
from srt_assets.core.scoring import stage as scores
from srt_assets.core.selection import decide
from srt_assets.core.sql import faults, models
from srt_assets.defs import names, sql_models
from srt_assets.defs.assets import asset_of
from srt_assets.defs.execute import has_passed
from srt_assets.defs.resources import LakeResource
from srt_assets.settings import Project, Settings


@dg.asset(name="selected_set", partitions_def=names.students)
def stands_in_for_selected_set() -> None: ...


def sample(n: int) -> dict:
    texts = {"instruction": f"i{n}", "input": "", "response": "r"}
    return {"sample_id": f"s{n}", "dataset": "d", **texts, "source_file": "f", "source_index": n}


@pytest.fixture
def two_students(home: Path) -> Lake:
    """Two records; student a has a verdict on both, student b was not run since the second one came."""
    lake = Lake(home)
    lake.commit(
        "raw_records",
        [lake.write_part("raw_records", [sample(0), sample(1)])],
        fingerprint=Fingerprint.of(of="f"),
        code_version="1",
    )
    for student, count in (("a", 2), ("b", 1)):
        rows = [
            {"student": student, "sample_id": f"s{n}", "kept": False, "outcome": "not_chosen", "policy": "original"}
            for n in range(count)
        ]
        partition = f"student={student}"
        part = lake.write_part("decisions", rows, partition)
        lake.commit("decisions", [part], fingerprint=Fingerprint.of(of="f"), code_version="1", partition=partition)
    return lake


@pytest.mark.parametrize(("student", "passes"), [("a", True), ("b", False)])
def test_counts_reconcile_per_student(two_students: Lake, student: str, passes: bool) -> None:
    checks = [c for c in sql_models.checks() if next(iter(c.check_keys)).name == "counts_reconcile"]
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(names.students.name or "", ["a", "b"])
        result = dg.materialize(
            [stands_in_for_selected_set, *checks],
            partition_key=student,
            instance=instance,
            resources={"lake": LakeResource(Settings(project=Project(home=two_students.home)))},
            raise_on_error=False,
        )
        [evaluation] = result.get_asset_check_evaluations()
    assert evaluation.passed is passes
    assert passes or "srt run selected_set" in (evaluation.description or "")


# -- over a real instance: both students through the stage, one with unsound rows

SOUND = dg.AssetCheckKey(dg.AssetKey("student_scores"), scores.COMPLETE)


class Two:
    """Students a and b, whose scores are made already, and what selects after them."""

    def __init__(self, home: Path, instance: dg.DagsterInstance) -> None:
        small_lake(home, students=("a", "b"))
        self.instance, self.cursor = instance, None
        instance.add_dynamic_partitions(names.students.name or "", ["a", "b"])
        self.defs = dg.Definitions(
            assets=[
                dg.AssetSpec("reflected_responses"),
                dg.AssetSpec(names.STUDENT_CHECKPOINT, partitions_def=names.students),
                asset_of(scores.STAGE),
                asset_of(decide.STAGE),
            ],
            resources={"lake": LakeResource(Settings(project=Project(home=home)))},
        )
        self.report("reflected_responses", None, "1")
        for slug in "ab":
            self.report(names.STUDENT_CHECKPOINT, slug, "1")

    def report(self, asset: str, slug: str | None, version: str) -> None:
        """Something upstream was made, with this content."""
        tags = {"dagster/data_version": version}
        self.instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=slug, tags=tags))

    def run(self, slug: str) -> dg.ExecuteInProcessResult:
        """The student's scores, and their check."""
        job = self.defs.resolve_implicit_global_asset_job_def()
        mine = [dg.AssetKey("student_scores")]
        return job.execute_in_process(
            instance=self.instance, asset_selection=mine, partition_key=slug, raise_on_error=False
        )

    def status(self, slug: str) -> str:
        found = self.instance.event_log_storage.get_latest_asset_check_execution_by_key(
            [SOUND], PartitionKeyFilter(key=slug)
        )
        return found[SOUND].status.value

    def requested(self) -> set[str]:
        """A tick of the automation: whose selection is asked for."""
        found = dg.evaluate_automation_conditions(self.defs, self.instance, cursor=self.cursor)
        self.cursor = found.cursor
        return set(found.get_requested_partitions(dg.AssetKey("selected_set")))


@pytest.fixture
def two(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    def made(stage: object, settings: Settings, lake: Lake, student: str, *_: object) -> Outcome:
        manifest = lake.manifest("student_scores", f"student={student}")
        assert manifest
        return Outcome(manifest, cached=True)

    monkeypatch.setattr(scores.StudentScores, "run", made)
    with dg.instance_for_test() as instance:
        yield Two(home, instance)


@pytest.mark.slow
def test_a_red_check_stays_red_when_another_student_turns_green(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = describe.faults
    monkeypatch.setattr(
        describe, "faults", lambda lake, slug: sound(lake, slug) | ({"unsound_rows": 3} if slug == "a" else {})
    )
    two.requested()
    assert not has_passed(two.defs, two.instance, "student_scores", "a"), "nobody has looked yet"
    failed = two.run("a")
    assert not failed.success
    [event] = failed.get_step_failure_events()
    told = event.step_failure_data.user_failure_data.description
    assert scores.COMPLETE in told and "unsound_rows 3" in told and "-> " in told
    assert two.run("b").success
    assert (two.status("a"), two.status("b")) == ("FAILED", "SUCCEEDED")
    assert [has_passed(two.defs, two.instance, "student_scores", slug) for slug in "ab"] == [False, True]
    # What selects waits for the student whose scores are sound, and for that one only.
    assert two.requested() == {"b"}

    monkeypatch.setattr(describe, "faults", sound)
    assert two.run("a").success
    assert (two.status("a"), two.status("b")) == ("SUCCEEDED", "SUCCEEDED")
    assert has_passed(two.defs, two.instance, "student_scores", "a")
    assert "a" in two.requested()


def test_a_check_of_ones_own_must_say_whose_its_rows_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "mine.sql").write_text(
        "-- What must hold.\n-- @asset: student_scores\n"
        "SELECT sample_id FROM {{ source('lake', 'student_scores') }} WHERE n_tokens_response = 0"
    )
    monkeypatch.setattr(models, "folder", lambda: tmp_path)
    assert "select the column student too" in "".join(map(str, faults.faults()))


def test_a_check_of_what_all_students_share_looks_at_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a run of one of them, whose sound rows would else hide the others' bad ones."""
    for folder in ("models", "tests"):
        (tmp_path / "sql" / folder).mkdir(parents=True)
    (tmp_path / "sql" / "models" / "mine.sql").write_text("SELECT student FROM {{ source('lake', 'student_scores') }}")
    (tmp_path / "sql" / "tests" / "no_b.sql").write_text(
        "-- No b.\n-- @asset: mine\nSELECT student FROM {{ ref('mine') }} WHERE student = 'b'"
    )
    monkeypatch.setattr(models, "folder", lambda: tmp_path / "sql")
    lake = small_lake(tmp_path / "home", students=("a", "b"))

    @dg.asset(name="mine")
    def stands_in() -> None: ...

    [check] = sql_models.checks()
    done = dg.materialize(
        [stands_in, check],
        tags={"dagster/partition": "a"},
        resources={"lake": LakeResource(Settings(project=Project(home=lake.home)))},
        raise_on_error=False,
    )
    [found] = done.get_asset_check_evaluations()
    assert not found.passed and found.metadata["failing_rows"].value == 32
