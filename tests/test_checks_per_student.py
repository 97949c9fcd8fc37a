"""A check of a student's asset looks at that student only: another one's fault does not hold it up."""

from pathlib import Path

import dagster as dg
import pytest

from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.defs import names, sql_models
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
