"""The promise, live: a checkpoint lands, and its scores, selection and successor come to be by themselves.

A real daemon and web server in an instance of their own, ticks of seconds, tiny students, a fake teacher that counts.
Not part of `make test`: `make live`. The site stays in pytest's temporary folder, for a web server to show it.
"""

import json
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
from fake_openai import FakeOpenAI
from live_site import RECORDS, Site
from tiny_student import make_tiny_student

from srt_assets.core.status import standings


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as server:
        yield server


@pytest.fixture
def site(tmp_path: Path, fake: FakeOpenAI) -> Iterator[Site]:
    made = Site(tmp_path, fake.base)
    try:
        yield made
    finally:
        made.close()
        made.report(fake.calls)
    assert made.processes() == [], "a process was left behind"


def land(site: Site, name: str, seed: int) -> None:
    """A checkpoint arrives as a careful trainer leaves it: renamed into place when it is whole."""
    aside, place = site.arrivals / f".{name}", site.arrivals / name
    make_tiny_student(aside, seed=seed)
    shutil.rmtree(place, ignore_errors=True)
    aside.rename(place)


def graphql(port: int, query: str) -> dict:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        json.dumps({"query": query}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["data"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def by_hand(site: Site, *words: str) -> None:
    done = subprocess.run(site.command("srt", *words), env=site.env, cwd=site.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(1500)
def test_students_arrive_by_themselves(site: Site, fake: FakeOpenAI) -> None:
    by_hand(site, "run", "reflected_responses")
    paid = fake.calls
    assert paid == 3 * len(RECORDS)
    site.note(f"teacher side made by hand: {paid} calls; from here on nobody touches anything but the folder")

    daemon = site.start_daemon()
    port = free_port()
    site.start("python", "-m", "srt_assets.defs.webserver", "-w", "workspace.yaml", "-p", str(port))
    land(site, "a", seed=0)
    site.note("A landed")
    site.wait("a is scored, selected, finetuned", lambda: site.fresh("a"))
    site.note("A is up to date")
    whole = site.scored()["a"]
    assert whole > 0

    # The daemon dies while B is scored: the run goes on, the next daemon finds nothing to repeat.
    site.slow.touch()
    land(site, "b", seed=1)
    site.note("B landed")
    site.wait("b is being scored", lambda: site.scored().get("b"))
    daemon.kill()
    daemon.wait()
    site.note("daemon killed with -9 while B was scored")
    site.slow.unlink()
    daemon = site.start_daemon()
    site.wait("b is scored, selected, finetuned", lambda: site.fresh("b"))
    site.note("B is up to date")
    assert site.scored()["b"] == whole

    # The run's process dies while the changed A is scored: its slot is freed, its step ends, it is taken up again.
    site.slow.touch()
    land(site, "a", seed=2)
    site.note("A changed")
    site.wait("a is scored again", lambda: site.scored()["a"] > whole)
    [victim] = [run for run in site.arrivals_of("a") if not run.is_finished]
    worker = site.worker_of(victim)
    steps = worker.children(recursive=True)
    assert steps
    worker.kill()
    site.note("run worker killed with -9 while the changed A was scored")
    site.slow.unlink()
    site.wait("the killed run has failed", lambda: not alive(site, victim))
    _, left = psutil.wait_procs(steps, timeout=30)
    assert not left, "the step outlived its run"
    site.wait("the changed a is scored, selected, finetuned", lambda: site.fresh("a"))
    site.note("the changed A is up to date")

    # Half a checkpoint is nobody until it is whole.
    make_tiny_student(site.arrivals / "c", seed=3)
    weights = site.arrivals / "c" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    site.note("half of C landed")
    site.settle()
    assert site.runs("c") == [] and "cut short" in skip_reason(site)
    with weights.open("ab") as file:
        file.write(data[len(data) // 2 :])
    site.note("the rest of C landed")
    # D has every file, but no model can be made of them; E is no checkpoint at all.
    land(site, "d", seed=4)
    config = site.arrivals / "d" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "nonsense", "architectures": ["No"]}))
    (site.arrivals / "e").mkdir()
    (site.arrivals / "e" / "config.json").write_text("{")
    site.note("D (unreadable) and E (no checkpoint) landed")
    site.wait("c is scored, selected, finetuned", lambda: site.fresh("c"))
    site.note("C is up to date")
    site.settle()

    states = {slug: [run.status.value for run in site.arrivals_of(slug)] for slug in "abcde"}
    assert states == {
        "a": ["SUCCESS", "FAILURE", "SUCCESS"],
        "b": ["SUCCESS"],
        "c": ["SUCCESS"],
        "d": ["FAILURE"],
        "e": [],
    }
    # `changed_inputs` may look while a run ends and ask once more for what that run has just made: it finds it made.
    arrived = {run.run_id for slug in "abcd" for run in site.arrivals_of(slug)}
    known = arrived | {run.run_id for run in site.statuses()}
    others = [run for run in site.runs() if run.run_id not in known and "srt/command" not in run.tags]
    assert [made for run in others if (made := site.computed(run))] == []
    assert fake.calls == paid, "an arriving student asked the teacher"
    scored = site.scored()
    # What the killed run had scored before its last rows were put down may be scored twice, nothing else is.
    assert scored["b"] == scored["c"] == whole and 2 * whole <= scored["a"] <= 3 * whole
    check_the_lake(site)
    check_the_status(site)
    why = skip_reason(site)
    assert "a: run" not in why and "d: run" in why and "srt run --student d" in why and "e: " in why
    notes = {path.stem: path.read_text() for path in (site.settings.home / "failures").glob("*.md")}
    [failed] = site.arrivals_of("d")
    assert {failed.run_id, victim.run_id} == set(notes) and "srt run --student d" in notes[failed.run_id]
    with site.instance() as instance:
        info = instance.event_log_storage.get_concurrency_info("device")
        assert info.active_slot_count == 0 and info.pending_step_count == 0
    seen = graphql(port, "{ runsOrError { ... on Runs { results { status } } } }")["runsOrError"]["results"]
    assert len(seen) == len(site.runs()), "the web server sees the same runs"


def alive(site: Site, run: dg.DagsterRun) -> bool:
    with site.instance() as instance:
        found = instance.get_run_by_id(run.run_id)
    return found is not None and not found.is_finished


def skip_reason(site: Site) -> str:
    return next((tick.skip_reason or "" for tick in site.ticks("new_student_checkpoints") if tick.is_completed), "")


def check_the_status(site: Site) -> None:
    """The table in the UI says what the lake says, also of the student whose run never came to its end."""
    assert site.statuses() and all(run.is_success for run in site.statuses())
    with site.instance() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("pipeline_status"))
    assert event and event.asset_materialization
    facts = {key: value.value for key, value in event.asset_materialization.metadata.items()}
    found = standings(site.settings, site.lake, list("abcd"))
    for state in ("fresh", "changed", "missing", "failed"):
        assert facts[state] == sum(s.state == state for s in found), state
    assert facts["failed"] == 1 and "| student_scores | d | failed |" in str(facts["status"])


def check_the_lake(site: Site) -> None:
    n = len(RECORDS)
    students = "student IN ('a', 'b', 'c')"
    count = "SELECT student, count(*) FROM {} WHERE " + students + " GROUP BY 1 ORDER BY 1"
    assert site.rows(count.format("student_scores")) == [("a", 4 * n), ("b", 4 * n), ("c", 4 * n)]
    assert site.rows(count.format("decisions")) == [("a", n), ("b", n), ("c", n)]
    assert site.rows(count.format("training_runs")) == [("a", 1), ("b", 1), ("c", 1)]
    assert site.rows("SELECT count(DISTINCT student_fingerprint) FROM student_scores WHERE " + students) == [(3,)]
    assert site.rows("SELECT count(*) FROM student_scores WHERE student = 'd'") == [(0,)]
    for (path,) in site.rows("SELECT path FROM training_runs"):
        assert (Path(path) / "model.safetensors").is_file()
