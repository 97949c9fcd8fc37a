"""Who may read what a run makes: its owner alone, or the group of a home that is a team's."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from fake_openai import FakeOpenAI, Plan
from selection_lake import small_lake

from srt_assets.core import rights
from srt_assets.core.selection import decide
from srt_assets.settings import Project, Settings

ENV = {**os.environ, "OPENAI_API_KEY": "key-of-nobody", "PYTHONPATH": str(Path(__file__).parents[1])}


def srt(folder: Path, *arguments: str, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", "from srt_assets.cli import main; main()", *arguments]
    return subprocess.run(
        command, cwd=folder, env=ENV, capture_output=True, text=True, timeout=300, preexec_fn=lambda: os.umask(umask)
    )


def rights_of(folder: Path) -> dict[str, int]:
    found = {"." if path == folder else str(path.relative_to(folder)): path for path in (folder, *folder.rglob("*"))}
    return {name: stat.S_IMODE(path.lstat().st_mode) for name, path in found.items() if not path.is_symlink()}


def project(folder: Path, base: str) -> None:
    (folder / "d.json").write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    (folder / "srt.toml").write_text(
        "[project]\nhome = 'home'\n[[datasets]]\nname = 'd'\npath = 'd.json'\n"
        f"[teacher]\nmodel = 'openai/fake'\napi_base = '{base}'\n"
    )


@pytest.mark.slow
def test_what_a_run_makes_is_its_owners_alone(tmp_path: Path) -> None:
    reply = "[New Instruction] c [End] [New Answer] d [End]"
    with FakeOpenAI(lambda body, nth: Plan(text=reply)) as teacher:
        project(tmp_path, teacher.base)
        done = srt(tmp_path, "run", "reflected_instructions")
    assert done.returncode == 0, done.stdout + done.stderr
    made = rights_of(tmp_path / "home")
    assert {name: oct(mode) for name, mode in made.items() if mode & 0o077} == {}
    assert any("teacher_calls" in name for name in made) and any("dagster/history" in name for name in made)
    assert rights_of(tmp_path / "d.json") == {".": 0o644}


TEAM = """
from srt_assets.commands.run import instance_of
from srt_assets.core import rights
from srt_assets.settings import load_settings
settings = load_settings()
rights.keep(settings.home)
with instance_of(settings):
    (settings.home / "made").mkdir()
    (settings.home / "made" / "file").touch()
"""


def test_in_a_home_that_is_a_teams_the_group_can_go_on(tmp_path: Path) -> None:
    project(tmp_path, "http://127.0.0.1:9/v1")
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o2770)
    subprocess.run([sys.executable, "-P", "-c", TEAM], cwd=tmp_path, env=ENV, check=True, timeout=300)
    made = rights_of(tmp_path / "home")
    assert any(name.endswith(".db") for name in made) and "made/file" in made
    assert {name: oct(mode) for name, mode in made.items() if mode & 0o007 or not mode & stat.S_IWGRP} == {}


def test_a_report_is_made_as_the_user_makes_files(tmp_path: Path) -> None:
    lake = small_lake(tmp_path / "home")
    decide.STAGE.run(Settings(project=Project(home=lake.home)), lake, student="tiny")
    (tmp_path / "srt.toml").write_text("[project]\nhome = 'home'\n")
    done = srt(tmp_path, "report", "--student", "tiny", "--out", "report.md", umask=0o027)
    assert done.returncode == 0, done.stderr
    assert rights_of(tmp_path / "report.md") == {".": 0o640}


@pytest.mark.parametrize(
    ("mode", "remedy"),
    [(0o700, ""), (0o755, "chmod -R go-rwx"), (0o2770, ""), (0o2775, "chmod -R o-rwx"), (0o750, "chmod -R go-rwx")],
)
def test_a_home_that_is_open_to_others_is_told(tmp_path: Path, mode: int, remedy: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(mode)
    assert rights.open_to_others(home) == remedy
