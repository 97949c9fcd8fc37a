"""Whether a Dagster instance is opened to see who was deleted there: only if its files, or the home, have changed."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from srt_assets.cli import main
from srt_assets.core import looks
from srt_assets.core.lake import Lake
from srt_assets.core.students import folders, news
from srt_assets.defs import names, retirement
from srt_assets.defs.instance import prepare_instance
from srt_assets.settings import Project, Settings

STUDENTS = names.students.name or ""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(looks, "SETTLED_S", -60.0)
    (tmp_path / "srt.toml").write_text("[project]\nhome = 'home'\n")
    return Settings(project=Project(home=tmp_path / "home"))


@pytest.fixture
def lake(settings: Settings) -> Lake:
    for slug in ("a", "b"):
        record = {"source": f"org/{slug}", "revision": "", "parent": "", "generation": 0}
        (folder := settings.home / "students" / slug).mkdir(parents=True)
        (folder / folders.RECORD).write_text(json.dumps(record))
    return Lake(settings.home)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instance of nothing: making one takes two seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(place := tmp_path_factory.mktemp("dagster")))
        return prepare_instance(Settings(project=Project(home=place.parent)))


@pytest.fixture
def instance(
    settings: Settings, lake: Lake, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    shutil.copytree(empty, settings.home / "dagster")
    monkeypatch.setenv("DAGSTER_HOME", str(settings.home / "dagster"))
    with dg.DagsterInstance.get() as made:
        retirement.add_partitions(lake, made, ["a", "b"])
        yield made


def nothing_new(lake: Lake) -> bool:
    return news.none(lake, lake.home / "dagster")


def test_there_is_no_news_until_a_file_of_the_instance_changes(
    settings: Settings, lake: Lake, instance: dg.DagsterInstance
) -> None:
    assert not nothing_new(lake), "nobody has looked"
    assert retirement.settle(settings, lake, instance) == [] and nothing_new(lake)
    instance.delete_dynamic_partition(STUDENTS, "a")
    assert not nothing_new(lake)
    assert retirement.settle(settings, lake, instance) == ["a"]
    assert not nothing_new(lake), "that look has written itself"
    assert retirement.settle(settings, lake, instance) == [] and nothing_new(lake)
    assert not news.none(lake, lake.home / "another"), "another instance may say something else"
    (lake.home / "dagster" / "dagster.yaml").write_text("{}")
    assert not nothing_new(lake), "it may be kept on a server now"


def test_a_file_that_was_changed_a_moment_ago_may_change_again(
    settings: Settings, lake: Lake, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "SETTLED_S", 60.0)
    retirement.settle(settings, lake, instance)
    assert not nothing_new(lake)


def test_who_was_killed_while_retiring_is_news(settings: Settings, lake: Lake, instance: dg.DagsterInstance) -> None:
    retirement.settle(settings, lake, instance)
    path = lake.home / "students" / "b" / folders.RECORD
    facts = {folders.RETIRED: {"at": "2026-01-01T00:00:00+00:00", "signatures": []}}
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    assert not nothing_new(lake)
    retirement.settle(settings, lake, instance)
    assert instance.get_dynamic_partitions(STUDENTS) == ["a"]


def test_what_cannot_be_settled_stays_news(
    settings: Settings, lake: Lake, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise retirement.UserError("its record cannot be written", "make it writable")

    retirement.settle(settings, lake, instance)
    instance.delete_dynamic_partition(STUDENTS, "a")
    monkeypatch.setattr(retirement, "retire", refuses)
    for _ in range(2):
        assert retirement.settle(settings, lake, instance) == [] and not nothing_new(lake)


def test_an_instance_that_is_not_kept_in_files_is_asked_each_time(settings: Settings, lake: Lake) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(2):
            retirement.settle(settings, lake, instance)
    assert not looks.memory_of(lake.home, "instance").exists()


@pytest.mark.parametrize("command", [["status"], ["students", "list"]])
def test_the_commands_open_it_only_for_news(
    settings: Settings,
    lake: Lake,
    instance: dg.DagsterInstance,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened = []
    get = dg.DagsterInstance.get
    monkeypatch.setattr(dg.DagsterInstance, "get", lambda: opened.append(1) or get())
    monkeypatch.setattr(sys, "argv", ["srt", *command])

    def srt() -> int:
        opened.clear()
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return len(opened)

    assert (srt(), srt()) == (1, 0)
    instance.delete_dynamic_partition(STUDENTS, "a")
    capsys.readouterr()
    assert srt() == 1 and "student a: its partition was deleted" in capsys.readouterr().err
