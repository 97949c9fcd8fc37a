"""Retention of finetuned checkpoints: the newest, the current and students stay; listed before deleted."""

import json
import os
import time

import pytest
from tiny_student import make_tiny_student
from typer.testing import CliRunner

from srt_assets.cli import app
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.students import checkpoints
from srt_assets.core.training import job, prune
from srt_assets.settings import Project, Settings, Training


@pytest.fixture
def settings(lake: Lake) -> Settings:
    """Six finished trainings of `tiny`: `training_runs` names 1, the student `second` is 2; the newest two stay."""
    settings = Settings(project=Project(home=lake.home), training=Training(keep_last=2))
    for number in range(6):
        place = make_tiny_student(lake.home / "checkpoints" / "tiny" / f"run-{number}", seed=number)
        record = {"training_fingerprint": f"f{number}", "left_out": {}}
        record["finished_at"] = f"2026-01-0{number + 1}T00:00:00+00:00"
        (place / job.RECORD).write_text(json.dumps(record))
    current = lake.home / "checkpoints" / "tiny" / "run-1"
    part = lake.write_part("training_runs", [{"student": "tiny", "run": "run-1", "path": str(current)}], "student=tiny")
    lake.commit("training_runs", [part], fingerprint=Fingerprint.of(of="f"), code_version="1", partition="student=tiny")
    checkpoints.add(settings, lake, str(lake.home / "checkpoints" / "tiny" / "run-2"), "second")
    return settings


def runs(lake: Lake) -> list[str]:
    return sorted(path.name for path in (lake.home / "checkpoints" / "tiny").iterdir())


def srt(lake: Lake, *words: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SRT_HOME", str(lake.home))
    monkeypatch.setenv("SRT_TRAINING__KEEP_LAST", "2")
    monkeypatch.chdir(lake.home)
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


def test_listed_first_and_deleted_only_when_told(lake: Lake, settings: Settings, monkeypatch) -> None:
    said = srt(lake, "prune", monkeypatch=monkeypatch)
    assert "run-0 " in said and "run-3 " in said and "would delete 2 directories" in said
    assert len(runs(lake)) == 6, "a dry run deletes nothing"
    assert "deleted: 2 directories" in srt(lake, "prune", "--yes", monkeypatch=monkeypatch)
    assert runs(lake) == ["run-1", "run-2", "run-4", "run-5"]
    assert checkpoints.get(lake, "second").fingerprint
    assert "nothing to delete" in srt(lake, "prune", "--yes", monkeypatch=monkeypatch)


def test_states_nobody_continues_go_too(lake: Lake, settings: Settings) -> None:
    for name, age_days in (("old", 8), ("new", 1)):
        task = lake.home / "training" / "gone" / name / "job.json"
        task.parent.mkdir(parents=True)
        task.write_text("{}")
        os.utime(task, (time.time() - age_days * 86400,) * 2)
    assert [w.path.name for w in prune.find(settings, lake) if w.student == "gone"] == ["old"]
    prune.remove(settings, lake)
    assert [p.name for p in (lake.home / "training" / "gone").iterdir()] == ["new"]


def test_a_training_of_more_than_a_week_keeps_the_state_it_has_just_saved(lake: Lake, settings: Settings) -> None:
    work = lake.home / "training" / "tiny" / "long"
    (work / "states" / "checkpoint-900").mkdir(parents=True)
    (work / "job.json").write_text("{}")
    os.utime(work / "job.json", (time.time() - 9 * 86400,) * 2)
    assert not [w for w in prune.find(settings, lake) if w.path == work]


def test_it_does_not_wait_for_a_training_that_goes_on(lake: Lake, settings: Settings) -> None:
    with lake.lock("training_runs", "student=tiny"):
        assert prune.remove(settings, lake) == ([], ["tiny"])
    assert len(runs(lake)) == 6


def test_what_is_current_stays_when_the_home_has_moved(lake: Lake, settings: Settings, tmp_path) -> None:
    moved = Lake(lake.home.rename(tmp_path / "elsewhere"))
    # run-1 is current, run-2 a student, 4 and 5 are the newest.
    assert [w.path.name for w in prune.find(settings, moved)] == ["run-0", "run-3"]
    assert checkpoints.get(moved, "second").fingerprint


def test_a_home_without_trainings_has_nothing(lake: Lake) -> None:
    assert prune.find(Settings(project=Project(home=lake.home)), lake) == []
