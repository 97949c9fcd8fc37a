"""The nightly schedule: when, in whose time, and for which students."""

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from tiny_student import make_tiny_student
from typer.testing import CliRunner

from srt_assets.cli import app
from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.students import checkpoints
from srt_assets.defs.arrivals import STUDENTS
from srt_assets.defs.automation import nightly
from srt_assets.settings import Automation, Project, Settings


@pytest.mark.parametrize("zone", ["America/New_York", ":Europe/Berlin"])
def test_the_hour_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    assert nightly(Settings()).execution_timezone == zone.removeprefix(":")


def test_a_zone_without_a_name_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST")
    monkeypatch.setattr(Path, "resolve", lambda path: path)  # /etc/localtime is a file of its own
    assert nightly(Settings()).execution_timezone == "UTC"


def test_a_student_that_is_nowhere_any_more_is_not_tried_every_night(home: Path, tmp_path: Path) -> None:
    settings = Settings(
        project=Project(home=home), automation=Automation(enabled=True, watch=str(tmp_path / "arrivals"))
    )
    checkpoints.add(settings, Lake(home), str(make_tiny_student(tmp_path / "elsewhere")), "mine")
    make_tiny_student(tmp_path / "arrivals" / "landed")
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(STUDENTS, ["mine", "landed", "gone"])
        when = datetime(2030, 1, 1, 2, tzinfo=UTC)
        asked = nightly(settings)(dg.build_schedule_context(instance, scheduled_execution_time=when))
    assert isinstance(asked, list)
    assert [request.partition_key for request in asked] == ["landed", "mine"]


def test_an_empty_name_does_not_mean_every_student(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRT_HOME", str(home))
    done = CliRunner().invoke(app, ["run", "--student", ""])
    assert isinstance(done.exception, UserError) and "unknown student ''" in str(done.exception)
