"""A site for the live test: home, settings, watched folder, and the Dagster processes that work there by themselves."""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import psutil

from srt_assets.core.lake import Lake
from srt_assets.core.status import standings
from srt_assets.settings import Settings, load_settings

RECORDS = [
    {"instruction": f"Explain thing {n}.", "input": "with care" if n % 3 else "", "output": f"Thing {n} is a thing."}
    for n in range(24)
]
SETTINGS = """
[project]
home = "home"
[[datasets]]
name = "small"
path = "records.json"
[teacher]
model = "openai/fake"
api_base = "{teacher}"
[student]
max_length = 512
[selection]
policy = "reflected_all"
[training]
max_steps = 2
batch_size = 2
max_length = 512
held_out = 0.3
[automation]
enabled = true
watch = "arrivals"
nightly = "0 0 29 2 *"
"""
WORKSPACE = "load_from:\n  - python_file: {{relative_path: {file}, location_name: srt_assets}}\n"
MARK = "SRT_LIVE_SITE"
UNFINISHED = [s for s in dg.DagsterRunStatus if s.value not in ("SUCCESS", "FAILURE", "CANCELED")]


class Site:
    """Everything under one folder. `note` collects the timeline; every process started here carries our mark."""

    def __init__(self, root: Path, teacher: str) -> None:
        self.root, self.began = root, time.time()
        self.arrivals = root / "arrivals"
        self.arrivals.mkdir()
        self.slow, self.passes = root / "slow", root / "passes"
        (root / "records.json").write_text(json.dumps(RECORDS))
        (root / "srt.toml").write_text(SETTINGS.format(teacher=teacher))
        location = Path(__file__).with_name("location.py")
        (root / "workspace.yaml").write_text(WORKSPACE.format(file=json.dumps(str(location))))
        if other := os.environ.get("LIVE_DAGSTER_YAML"):
            # Another storage than SQLite, for instance the Postgres of docs/operations.md.
            (root / "home" / "dagster").mkdir(parents=True)
            shutil.copy(other, root / "home" / "dagster" / "dagster.yaml")
        self.mark = uuid.uuid4().hex
        self.settings: Settings = load_settings(root / "srt.toml")
        self.lake = Lake(self.settings.home)
        self.env = {
            **os.environ,
            MARK: self.mark,
            "SRT_SETTINGS": str(root / "srt.toml"),
            "DAGSTER_HOME": str(self.settings.home / "dagster"),
            "SRT_LIVE_PASSES": str(self.passes),
            "SRT_LIVE_SLOW": str(self.slow),
            "OPENAI_API_KEY": "key-of-nobody",
            # One thread: the machine is shared with the daemon, two code servers and the steps of another run.
            "OMP_NUM_THREADS": "1",
        }
        self.timeline: list[tuple[float, str]] = []

    def note(self, text: str) -> None:
        self.timeline.append((time.time(), text))
        print(f"{time.time() - self.began:6.0f} s  {text}", flush=True)

    def command(self, name: str, *words: str) -> list[str]:
        return [str(Path(sys.executable).with_name(name)), *words]

    def start(self, name: str, *words: str) -> subprocess.Popen:
        log = (self.root / f"{name}.log").open("a")
        return subprocess.Popen(self.command(name, *words), env=self.env, cwd=self.root, stdout=log, stderr=log)

    def start_daemon(self) -> subprocess.Popen:
        return self.start("dagster-daemon", "run", "-w", "workspace.yaml")

    # -- looking

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(self.env["DAGSTER_HOME"])

    def runs(self, student: str | None = None, unfinished: bool = False) -> list[dg.DagsterRun]:
        tags = {"dagster/partition": student} if student else {}
        with self.instance() as instance:
            found = instance.get_runs(dg.RunsFilter(tags=tags, statuses=UNFINISHED if unfinished else []))
        return found[::-1]

    def arrivals_of(self, student: str) -> list[dg.DagsterRun]:
        """Runs because the student's checkpoint arrived, and what was taken up again of them."""
        return [r for r in self.runs(student) if r.tags.get("dagster/sensor_name") == "new_student_checkpoints"]

    def statuses(self) -> list[dg.DagsterRun]:
        """Runs that renewed the table of `srt status` after others, oldest first."""
        return [r for r in self.runs() if r.tags.get("dagster/sensor_name") == "status_after_runs"]

    def computed(self, run: dg.DagsterRun) -> list[str]:
        """The assets that a run made anew, not found made."""
        with self.instance() as instance:
            logs = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        made = [log.asset_materialization for log in logs if log.asset_materialization]
        return [m.asset_key.to_user_string() for m in made if m.metadata["srt/cache"].value != "hit"]

    def fresh(self, *students: str) -> bool:
        try:
            return all(s.state == "fresh" for s in standings(self.settings, self.lake, list(students)))
        except OSError:  # a student is being registered this moment
            return False

    def scored(self) -> dict[str, int]:
        """Forward passes by student so far, as the scorer itself was asked for them."""
        found: dict[str, int] = {}
        for line in self.passes.read_text().splitlines() if self.passes.exists() else ():
            student, number = line.split()
            found[student] = found.get(student, 0) + int(number)
        return found

    def rows(self, sql: str) -> list[tuple]:
        con = self.lake.connect()
        try:
            return con.execute(sql).fetchall()
        finally:
            con.close()

    def ticks(self, sensor: str) -> list:
        """A sensor's ticks, newest first."""
        with self.instance() as instance:
            [state] = [s for s in instance.all_instigator_state() if s.name == sensor]
            return list(instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1000))

    def wait(self, what: str, happened: Callable[[], object], limit_s: float = 400) -> None:
        deadline = time.monotonic() + limit_s
        while not happened():
            assert time.monotonic() < deadline, f"in {limit_s:.0f} s it did not happen: {what}"
            time.sleep(0.5)

    def settle(self) -> None:
        """Wait until nothing runs, and the sensors have looked twice more without finding work."""
        names = ("new_student_checkpoints", "changed_inputs")

        def quiet() -> bool:
            if self.runs(unfinished=True):
                after.update({name: time.time() for name in names})
                return False
            return all(
                sum(tick.timestamp > after[name] and tick.is_completed for tick in self.ticks(name)) > 1
                for name in names
            )

        after = {name: time.time() for name in names}
        self.wait("no run, two ticks without one", quiet)

    # -- processes

    def processes(self) -> list[psutil.Process]:
        """Every living process that was started from here, also those whose parent is gone."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE
            except psutil.Error:
                continue
            if ours:
                found.append(process)
        return found

    def worker_of(self, run: dg.DagsterRun) -> psutil.Process:
        """The process of a run (not of its step)."""
        with self.instance() as instance:
            for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
                event = entry.dagster_event
                pid = event.engine_event_data.metadata.get("pid") if event else None
                if pid is not None:
                    return psutil.Process(int(str(pid.value)))
        raise AssertionError(f"run {run.run_id} has no process yet")

    def close(self) -> None:
        """Stop what we started, gently and then not, until nothing is left."""
        for process in (left := self.processes()):
            process.terminate()
        psutil.wait_procs(left, timeout=20)
        for process in (left := self.processes()):
            process.kill()
        psutil.wait_procs(left, timeout=5)

    def report(self, calls: int) -> None:
        """The timeline: what landed, what ran, what it cost."""
        lines = list(self.timeline)
        with self.instance() as instance:
            for record in instance.get_run_records():
                run, start, end = record.dagster_run, record.start_time, record.end_time
                by = "retry" if run.parent_run_id else run.tags.get("dagster/sensor_name")
                by = by or run.tags.get("srt/command", "?")
                spent = f"{end - start:.0f} s" if start and end else "never started"
                student = run.tags.get("dagster/partition", "-")
                steps = instance.get_run_stats(run.run_id)
                text = f"    run {run.run_id[:8]} of {student} by {by}: {run.status.value.lower()} after {spent}"
                lines.append((start or record.create_timestamp.timestamp(), f"{text}, {steps.steps_succeeded} steps"))
        print("\ntimeline")
        for at, text in sorted(lines):
            print(f"{at - self.began:6.0f} s  {text}")
        print(f"teacher calls: {calls}; forward passes: {self.scored()}")
