"""Many runs at once: one step at a time on a device, one writer a table; a step does not outlive its run."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb
import psutil
import pytest

from srt_assets.core.lake import Lake
from srt_assets.definitions import defs
from srt_assets.defs.instance import prepare_instance
from srt_assets.settings import Project, Settings
from tests.background import IN_BACKGROUND

HEAD = """
import json, os, pathlib, sys, time
import dagster as dg
from srt_assets.defs import names
from srt_assets.defs.execute import materialize
from srt_assets.defs.places import hold

def at_once(n, work):
    # Forked, so that Dagster is imported once: a process each, as runs are.
    children = []
    for number in range(n):
        pid = os.fork()
        if not pid:
            with dg.DagsterInstance.get() as instance:
                os._exit(work(instance, number))
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
"""

POOL = (
    HEAD
    + """
LOG = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
ENTERED, PLACES = pathlib.Path(sys.argv[1] + ".entered"), int(sys.argv[2]) if len(sys.argv) > 2 else 1

def work(instance, number):
    with hold(instance, "device"):
        began = time.time()
        if number == 5:
            os._exit(9)  # dies at work: its place must be free at once
        with ENTERED.open("a") as file:
            file.write("x")
        while len(ENTERED.read_text()) < PLACES:
            time.sleep(0.01)  # a place more is free: somebody comes in
        time.sleep(0.1)
        os.write(LOG, (json.dumps([began, time.time()]) + "\\n").encode())
    return 0

with dg.DagsterInstance.get() as instance:
    if len(sys.argv) > 2:
        instance.event_log_storage.set_concurrency_slots("device", PLACES)
print(at_once(10, work))
"""
)

TABLE = (
    HEAD
    + """
from srt_assets.definitions import build_defs
from srt_assets.settings import load_settings

def work(instance, number):
    os.environ["SRT_SETTINGS"] = sys.argv[1 + number % 2]
    defs = build_defs(load_settings())
    return materialize(defs, instance, ["raw_dataset"], None).exit_code

print(at_once(2, work))
"""
)


@pytest.fixture
def instance_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return prepare_instance(Settings(project=Project(home=home)))


def start(tmp_path: Path, script: str, *words: str, before: Sequence[str] = ()) -> subprocess.Popen:
    file = tmp_path / "script.py"
    file.write_text(script)
    command = [*before, sys.executable, str(file), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def at_once(spans: list[list[float]]) -> int:
    """The most that were at work at one time."""
    edges = sorted([(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans])
    running = most = 0
    for _, change in edges:
        running += change
        most = max(most, running)
    return most


@pytest.mark.parametrize("limit", [None, 2])
def test_of_ten_at_once_as_many_work_as_the_pool_admits(instance_home: Path, tmp_path: Path, limit: int | None) -> None:
    out, err = start(tmp_path, POOL, str(tmp_path / "log"), *([str(limit)] if limit else [])).communicate(timeout=120)
    assert out.strip() == str([0] * 5 + [9] + [0] * 4), err
    spans = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(spans) == 9
    assert at_once(spans) == (limit or 1), spans


def test_what_takes_a_device_or_the_teacher_is_in_its_pool() -> None:
    graph = defs.resolve_asset_graph()
    pools = {key.to_user_string(): graph.get(key).pools for key in graph.get_all_asset_keys()}
    device = {name for name, pool in pools.items() if "device" in pool}
    teacher = {name for name, pool in pools.items() if "teacher_api" in pool}
    assert device == {"student_scores", "selected_set", "finetuned_checkpoint"}
    assert teacher == {"reflected_instructions", "reflected_responses"}


@pytest.mark.slow
def test_runs_that_write_one_table_at_once_leave_one_content_whole(
    instance_home: Path, home: Path, tmp_path: Path
) -> None:
    """Two processes, two settings that want different rows, a reader that looks all the while."""
    files = []
    for name, n in (("few", 3), ("many", 200)):
        rows = [{"instruction": f"Explain {name} {i}.", "input": "", "output": f"It is {i}."} for i in range(n)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        files.append(tmp_path / f"{name}.toml")
        files[-1].write_text(
            f'[project]\nhome = "{home}"\n[[datasets]]\nname = "{name}"\npath = "{tmp_path / name}.json"\n'
        )
    process = start(tmp_path, TABLE, *map(str, files))
    seen = set()
    lake = Lake(home)
    while process.poll() is None:
        seen.add(tuple(duckdb.sql(f"SELECT dataset, count(*) FROM {lake.source('raw_records')} GROUP BY 1").fetchall()))
        time.sleep(0.01)
    out, err = process.communicate()
    assert out.strip() == str([0] * 2), err
    whole = {(("few", 3),), (("many", 200),)}
    assert seen - {()} <= whole and len(seen) > 1, "a reader saw half a table, or never a table"
    con = duckdb.connect(str(home / "srt.duckdb"), read_only=True)
    assert tuple(con.execute("SELECT dataset, count(*) FROM raw_records GROUP BY 1").fetchall()) in whole
    con.close()


STEP = """
import multiprocessing, pathlib, sys, time
from srt_assets.defs.orphans import end_with_run

def step(mark):
    end_with_run()
    try:
        pathlib.Path(mark).write_text("at work")
        time.sleep(600)
    except KeyboardInterrupt:
        pathlib.Path(mark).write_text("put down what it had")

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=step, args=(sys.argv[1],))
    child.start()
    print(child.pid, flush=True)
    child.join()
"""


@pytest.mark.parametrize("before", [(), IN_BACKGROUND], ids=["", "in the background"])
def test_a_step_whose_run_is_killed_puts_down_its_work_and_ends(tmp_path: Path, before: Sequence[str]) -> None:
    mark = tmp_path / "mark"
    run = start(tmp_path, STEP, str(mark), before=before)
    assert run.stdout is not None
    step = psutil.Process(int(run.stdout.readline()))
    while not mark.exists() or mark.read_text() != "at work":
        assert run.poll() is None
        time.sleep(0.02)
    run.kill()
    run.communicate()
    step.wait(timeout=120)
    assert mark.read_text() == "put down what it had"
    assert not psutil.pid_exists(step.pid) or step.status() == psutil.STATUS_ZOMBIE
