"""A real daemon and web server on a real instance, while checkpoints land, change, arrive in halves, and are broken.

Not part of `make test`: `make live` runs it (some minutes). It counts runs, teacher calls (a fake server on loopback)
and rows in the lake, and kills the daemon and a run's process with -9 in the middle.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
from fake_openai import FakeOpenAI

from srt_assets.core.lake import Lake

HERE = Path(__file__).parent
SETTINGS = """
[project]
home = "home"
[[datasets]]
name = "live"
path = "records.json"
[teacher]
model = "openai/fake"
api_base = "{base}"
[student]
max_length = 512
[training]
epochs = 1
max_steps = 2
batch_size = 2
max_length = 512
held_out = 0.3
[selection]
policy = "reflected_all"
[automation]
enabled = true
watch = "arrivals"
"""
FRUITS = ("apple", "pear", "plum", "quince", "cherry", "medlar", "fig", "grape")


def say(text: str) -> None:
    """One line of the timeline that `pytest -s` shows."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def wait(what: str, condition: Callable[[], object], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.5)


class Site:
    """A project folder with its daemon and web server."""

    def __init__(self, root: Path, base: str) -> None:
        self.root = root
        self.arrivals = root / "arrivals"
        self.arrivals.mkdir(parents=True)
        rows = [{"instruction": f"Describe a {f}.", "input": "", "output": f"A {f} is a fruit."} for f in FRUITS]
        (root / "records.json").write_text(json.dumps(rows))
        (root / "srt.toml").write_text(SETTINGS.format(base=base))
        self.lake = Lake(root / "home")
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SRT_", "DAGSTER_HOME"))},
            "SRT_SETTINGS": str(root / "srt.toml"),
            "DAGSTER_HOME": str(root / "home" / "dagster"),
            "OPENAI_API_KEY": "none",
            "PYTHONPATH": str(HERE),
        }
        self.processes: dict[str, subprocess.Popen] = {}

    def srt(self, *words: str) -> None:
        done = subprocess.run([sys.executable, "-m", "srt_assets.cli", *words], cwd=self.root, env=self.env, text=True)
        assert done.returncode == 0

    def start(self, name: str, *words: str) -> None:
        log = (self.root / f"{name}.log").open("a")
        command = [str(Path(sys.executable).parent / words[0]), *words[1:], "-m", "definitions_live"]
        self.processes[name] = subprocess.Popen(
            command, cwd=self.root, env=self.env, stdout=log, stderr=log, start_new_session=True
        )
        say(f"{name} started")

    def kill(self, name: str) -> None:
        """End a server and the code server below it with -9. Run workers are its children too: they go as well."""
        process = self.processes.pop(name)
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            member.send_signal(signal.SIGKILL)
        process.wait()
        say(f"{name} killed with -9, {len(family) - 1} processes below it too")

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.root / "home" / "dagster"))

    def runs(self, student: str) -> list[dg.DagsterRun]:
        with self.instance() as instance:
            return list(instance.get_runs(dg.RunsFilter(tags={"srt/student": student})))

    def done(self, student: str, count: int = 1) -> bool:
        return sum(r.status == dg.DagsterRunStatus.SUCCESS for r in self.runs(student)) >= count

    def rows(self, sql: str) -> list[tuple]:
        con = self.lake.connect()
        try:
            return con.execute(sql).fetchall()
        finally:
            con.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Site, FakeOpenAI]]:
    with FakeOpenAI() as fake:
        made = Site(tmp_path / "site", fake.base_url)
        try:
            yield made, fake
        finally:
            for name in list(made.processes):
                made.kill(name)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
