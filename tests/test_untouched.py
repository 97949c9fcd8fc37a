"""What is old enough to go, whatever the clock says today."""

import json
import os
from pathlib import Path

import pytest

from srt_assets.core import scratch, untouched
from srt_assets.core.lake import Lake
from srt_assets.core.training import finished, job, prune
from srt_assets.settings import Settings

DAY = 86_400.0
WEEK = 7 * DAY


class Clock:
    """The wall clock, in days."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.day = 1000.0
        monkeypatch.setattr("time.time", lambda: self.day * DAY)

    def look(self, memory: Path, *days: float) -> list[str]:
        """Which of what was touched on these days is old, named by its day."""
        return untouched.untouched({str(day): day * DAY for day in days}, WEEK, memory)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_old_is_what_two_looks_a_day_apart_have_found_old(tmp_path: Path, clock: Clock) -> None:
    memory = tmp_path / "looks.json"
    assert clock.look(memory, 992, 994) == []
    clock.day += 0.9
    assert clock.look(memory, 992, 994) == []
    clock.day += 0.2
    assert clock.look(memory, 992, 994) == ["992"]
    # Touched meanwhile, or gone.
    assert clock.look(memory, 1001) == [] and memory.read_text() == "{}"


def test_a_clock_that_is_ahead_for_an_hour_ends_nothing(tmp_path: Path, clock: Clock) -> None:
    memory = tmp_path / "looks.json"
    clock.day += 3650
    assert clock.look(memory, 999) == []
    clock.day -= 3650
    assert clock.look(memory, 999) == []
    clock.day += 3650
    assert clock.look(memory, 999) == [], "the first look is forgotten when the clock is right again"


def test_a_clock_that_was_ahead_keeps_nothing_for_ever(tmp_path: Path, clock: Clock) -> None:
    memory = tmp_path / "looks.json"
    found = []
    for _ in range(9):
        found = clock.look(memory, 5000)
        clock.day += 1
    assert found == ["5000"], "touched on a day to come: a week after the first look"


def test_a_look_on_a_day_to_come_does_not_count(tmp_path: Path, clock: Clock) -> None:
    memory = tmp_path / "looks.json"
    clock.day += 30
    clock.look(memory, 900)
    clock.day -= 30
    assert clock.look(memory, 900) == []
    clock.day += 1.1
    assert clock.look(memory, 900) == ["900"]


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": ["x", "y"]}', "null"])
def test_a_memory_that_is_none_is_begun_anew(tmp_path: Path, clock: Clock, text: str) -> None:
    (memory := tmp_path / "looks.json").write_text(text)
    assert clock.look(memory, 900) == []
    clock.day += 2
    assert clock.look(memory, 900) == ["900"]


def test_a_training_state_does_not_go_because_the_clock_is_ahead_today(lake: Lake, clock: Clock) -> None:
    task = lake.home / "training" / "tiny" / "left" / "job.json"
    task.parent.mkdir(parents=True)
    task.write_text("{}")
    os.utime(task, (1000 * DAY, 1000 * DAY))
    clock.day += 30
    assert finished.abandoned_states(lake, "tiny") == []
    assert [waste.path.name for waste in prune.find(Settings(), lake)] == ["left"], "whoever looks himself is told"
    clock.day += 2
    assert finished.abandoned_states(lake, "tiny") == [task.parent]


def test_the_newest_checkpoints_are_those_made_last_whatever_the_clock_said(lake: Lake) -> None:
    for number, (name, at) in enumerate(
        {"of-old": "2026-05-01", "first": "2099-01-01", "second": "2026-06-01"}.items()
    ):
        (place := finished.directory(lake, "tiny") / name).mkdir(parents=True)
        record = {"finished_at": at, "training_fingerprint": "f", "left_out": {}} | (
            {"number": number} if number else {}
        )
        (place / job.RECORD).write_text(json.dumps(record))
    assert [found.path.name for found in finished.all_of(lake, "tiny")] == ["of-old", "first", "second"]
    assert finished.next_number(lake, "tiny") == 3
    assert [path.name for path in finished.superseded(lake, "tiny", 2, [])] == ["of-old"]


def test_what_another_machine_has_spilled_goes_after_two_looks(home: Path, clock: Clock) -> None:
    (folder := home / "tmp" / "other-machine@1@a").mkdir(parents=True)
    os.utime(folder, (900 * DAY, 900 * DAY))
    scratch._remove_left_behind(home / "tmp")
    assert folder.exists()
    clock.day += 1.1
    scratch._remove_left_behind(home / "tmp")
    assert not folder.exists()
