"""What a careless user gets from the commands: one message with a remedy, exit code 2, and nothing left behind."""

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest
from selection_lake import small_lake
from tiny_student import make_tiny_student

import srt_assets
from srt_assets.cli import main
from srt_assets.commands import doctor, show
from srt_assets.core.errors import UserError, not_accessible
from srt_assets.core.lake import Lake
from srt_assets.core.selection import decide
from srt_assets.core.students import checkpoints
from srt_assets.settings import Project, Settings


def srt(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["srt", *words])
        main()
    return int(ended.value.code or 0), capsys.readouterr().err


def test_the_wrong_folder_is_no_empty_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["sql", "SELECT count(*) FROM decisions"], ["status"], ["students", "list"]):
        code, told = srt(capsys, *words)
        assert code == 2 and str(tmp_path) in told and "SRT_SETTINGS" in told
    assert not list(tmp_path.iterdir())


def test_renewing_is_refused_where_nothing_costs_money(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SRT_HOME", str(tmp_path / "home"))
    for words in (["run", "--renew"], ["run", "selected_set", "--renew"]):
        code, told = srt(capsys, *words)
        assert code == 2 and "name reflected_instructions or reflected_responses" in told


READING = [
    ["sql", "SELECT 1"],
    ["explain", "abc"],
    ["why-call", "abc"],
    ["export", "--student=tiny", "--out=set.json"],
    ["report", "--student=tiny", "--out=page.md"],
    ["status"],
    ["students", "list"],
    ["prune"],
    ["prune", "--yes"],
    ["doctor"],
]
# Of use before anything was made: what there is to do, and what is missing.
WITHOUT_A_HOME = ("status", "students", "prune", "doctor")


@pytest.mark.parametrize("named_by", ["the file", "SRT_HOME", "SRT_PROJECT__HOME"])
@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_reading_makes_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], named_by: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    home = tmp_path / ".srt" if named_by == "the file" else tmp_path / "hoem"
    if named_by == "the file":
        (tmp_path / "srt.toml").write_text("")
    else:
        monkeypatch.setenv(named_by, str(home))
    before = list(tmp_path.iterdir())
    code, told = srt(capsys, *words)
    if words[0] not in WITHOUT_A_HOME:
        assert code == 2 and f"there is no home {home}" in told and "srt run" in told
    assert list(tmp_path.iterdir()) == before


def test_read_in_a_notebook_makes_no_home_and_names_what_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no srt.toml in [\s\S]*SRT_SETTINGS"):
        srt_assets.read("decisions")
    for home in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=f"no home.*{home}|{home} is no home"):
            srt_assets.read("decisions", home=home)
    (tmp_path / "srt.toml").write_text("")
    with pytest.raises(UserError, match=f"there is no home {tmp_path}/.srt"):
        srt_assets.read("decisions")
    assert [p.name for p in tmp_path.iterdir()] == ["srt.toml"]
    small_lake(tmp_path / ".srt")
    assert len(srt_assets.read("candidate_scores")) == 32
    with pytest.raises(UserError, match=f"did you mean {tmp_path}/.srt"):
        srt_assets.read("decisions", home=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".srt", "srt.toml"]


def test_a_home_that_is_no_folder_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("SRT_HOME", str(tmp_path / "home"))
    for words in (["sql", "SELECT 1"], ["status"], ["explain", "abc"]):
        code, told = srt(capsys, *words)
        assert code == 2 and str(tmp_path / "home") in told and "->" in told


@pytest.mark.parametrize("words", [["sql", "SELECT '\udcff'"], ["explain", "\udcff"], ["why-call", "\udcff"]])
def test_an_argument_that_is_not_utf_8_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setenv("SRT_HOME", str(small_lake(tmp_path / "home").home))
    code, told = srt(capsys, *words)
    assert code == 2 and "->" in told


def test_a_folder_whose_name_is_not_utf_8_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "caf\udce9").mkdir()
    (folder / "srt.toml").write_text("")
    monkeypatch.chdir(folder)
    for words in (["sql", "SELECT 1"], ["status"], ["run"]):
        code, told = srt(capsys, *words)
        assert code == 2 and "project.home" in told and "caf\\xe9/.srt is not UTF-8" in told
    monkeypatch.setattr(sys, "argv", ["srt", "doctor"])
    with pytest.raises(SystemExit):
        main()
    assert "not UTF-8" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert [path.name for path in folder.iterdir()] == ["srt.toml"]


def test_a_configuration_may_hold_the_marks_of_rich(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_tiny_student(tmp_path / "source")
    facts = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(facts | {"architectures": ["[/odd]"]}))
    lake = Lake(tmp_path / "home")
    checkpoints.add(Settings(), lake, str(source), "tiny")
    show.students(lake)
    assert "[/odd]" in capsys.readouterr().out


def test_doctor_finds_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name == "litellm":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    assert any(f.level == "error" and "litellm" in f.what for f in doctor.examine())


def test_only_what_the_user_can_change_is_his_error() -> None:
    denied = not_accessible(PermissionError(13, "Permission denied", "out.json"))
    assert denied and "out.json" in str(denied) and denied.exit_code == 2
    assert not_accessible(FileNotFoundError(2, "No such file or directory", "x")) is None
    assert not_accessible(ValueError("x")) is None


def test_a_tilde_that_the_shell_left_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = small_lake(tmp_path / "home")
    decide.STAGE.run(Settings(project=Project(home=lake.home)), lake, student="tiny")
    for name, value in {"HOME": tmp_path / "me", "SRT_HOME": lake.home}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    assert srt(capsys, "export", "--student=tiny", "--out=~/set.json")[0] == 0
    assert srt(capsys, "report", "--student=tiny", "--out=~/page.md")[0] == 0
    assert sorted(p.name for p in (tmp_path / "me").iterdir()) == ["page.md", "set.json"]
    code, told = srt(capsys, "export", "--student=tiny", "--out=~/set.json/deeper.json")
    assert code == 2 and "set.json" in told and "->" in told
