"""Files beside the data run nothing: every command, and every process that a run starts, in a folder full of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from old_homes import open_home

from srt_assets.cli import app
from srt_assets.core import children
from srt_assets.core.training import launch
from tests.hostile import make_hostile, ran
from tests.tiny_student import make_tiny_student

ROOT = Path(__file__).parent.parent
# In the order in which they are run, in one process: what one of them imports is there for the next.
WORDS: dict[str, list[str]] = {
    "students add": ["students", "add", "{student}", "--name", "smollm2"],
    "students list": ["students", "list"],
    "students show": ["students", "show", "smollm2"],
    "estimate": ["estimate"],
    "preview": ["preview", "demo"],
    # Its first asset fails: what the others start has tests of its own, which have the fixture `hostile_folder`.
    "demo": ["SRT_SETTINGS=gone.toml", "demo"],
    "run": ["run", "raw_dataset"],
    "status": ["status"],
    "sql": ["sql", "SELECT count(*) AS n FROM decisions", "--format", "json"],
    "explain": ["explain", "{sample}", "--student", "tiny"],
    "why-call": ["why-call", "{sample}"],
    "export": ["export", "--student", "tiny", "--out", "set.json"],
    "report": ["report", "--student", "tiny", "--out", "page.html"],
    "prune": ["prune", "--yes"],
    "doctor": ["doctor", "--verify"],
    "repair": ["repair"],
    "students remove": ["students", "remove", "smollm2", "--purge", "--yes"],
}
ELSEWHERE = {"ui": "test_signals.py"}
# A script beside Python, as the command `srt` is; and last a step of Dagster's in a process of its own.
SCRIPT = """
import json, os, sys

if __name__ == "__main__":
    from srt_assets.cli import main

    for words in json.loads(sys.argv[1]):
        name, is_variable, value = words[0].partition("=")
        if is_variable:
            os.environ[name] = value
        sys.argv = ["srt", *words[bool(is_variable):]]
        try:
            main()
        except SystemExit as ended:
            print(words, "ended with", ended.code or 0)
        os.environ.pop(name, None)

    import dagster as dg
    from dagster._core.definitions.reconstruct import ReconstructableRepository

    job = ReconstructableRepository.for_module("srt_assets.definitions", "defs").get_reconstructable_job("teacher_side")
    with dg.DagsterInstance.get() as instance:
        assert dg.execute_job(job, instance, asset_selection=[dg.AssetKey("raw_dataset")]).success
    print("the step has ended")
"""


def commands(group: typer.core.TyperGroup, before: str = "") -> set[str]:
    found: set[str] = set()
    for name, command in group.commands.items():
        found |= commands(command, f"{name} ") if hasattr(command, "commands") else {before + name}
    return found


def test_no_command_is_left_out() -> None:
    assert commands(typer.main.get_group(app)) == WORDS.keys() | ELSEWHERE.keys()


@pytest.mark.slow
def test_nothing_in_the_folder_of_the_data_runs(tmp_path: Path) -> None:
    site = open_home("demo", tmp_path)
    sample = site.sql("SELECT min(sample_id) AS id FROM raw_records")[0]["id"]
    student = make_tiny_student(tmp_path / "student", seed=7)
    make_hostile(site.folder)
    gone = (site.folder / "srt.toml").read_text().replace('path = "demo.json"', 'path = "gone.json"')
    (site.folder / "gone.toml").write_text(gone)
    (script := tmp_path / "bin" / "srt").parent.mkdir()
    script.write_text(SCRIPT)
    words = json.dumps(list(WORDS.values())).replace("{student}", str(student)).replace("{sample}", sample)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "key-of-nobody", "OMP_NUM_THREADS": "1"}
    env |= {"SRT_TEACHER__API_BASE": "http://127.0.0.1:9/v1", "DAGSTER_HOME": str(tmp_path / "dagster")}
    done = subprocess.run([sys.executable, script, words], cwd=site.folder, env=env, capture_output=True, text=True)
    assert ran(site.folder) == []
    ended = [line.rpartition(" ")[2] for line in done.stdout.splitlines() if "ended" in line]
    assert ended == ["2" if name == "demo" else "0" for name in WORDS] + ["ended"], done.stdout + done.stderr


def test_folders_named_on_purpose_still_count_and_empty_names_are_none(hostile_folder: Path, tmp_path: Path) -> None:
    (mine := tmp_path / "mine").mkdir()
    (mine / "helper_of_mine.py").write_text("")
    assert children.safe({"PYTHONPATH": f":{mine}:"})["PYTHONPATH"] == f"{os.devnull}:{mine}"
    assert children.safe(children.safe({})) == children.safe({})
    # Dagster's way to import definitions takes the first entry away.
    code = "import sys; del sys.path[0]; import helper_of_mine, random"
    assert launch.plain([sys.executable, "-c", code], {"PYTHONPATH": f":{mine}"}) == 0
