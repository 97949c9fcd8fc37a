"""`srt ui`: starts Dagster's web server behind a guard, its daemon, and one code server for both, and ends them.

It does not use `dagster dev`, whose web server has no guard. Each part has a session of its own, so Ctrl-C on a
terminal reaches only this process, which ends the parts in order. Their output to a terminal passes through `terminal`.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import yaml
from rich.text import Text

from srt_assets.commands import terminal
from srt_assets.commands.run import instance_of
from srt_assets.core.errors import StageError, UserError
from srt_assets.core.lake import Lake
from srt_assets.core.students import checkpoints
from srt_assets.defs.retirement import add_partitions
from srt_assets.settings import Settings, find_settings_file

LOCATION = "srt_assets"
LOOK_EVERY_S = 0.2
# Seconds. The daemon finishes its writes; a run writes its scores, and a training saves its state.
GRACE_S, RUNS_GRACE_S = 10.0, 60.0


PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class _Stopped(Exception):
    """The user has asked to stop."""


class Asked:
    """Counts the signals that ask to stop: SIGINT, SIGTERM, and SIGHUP unless it is ignored."""

    def __init__(self) -> None:
        self.times = 0

    def __enter__(self) -> "Asked":
        heard = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            heard.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._hear) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: object) -> None:
        self.times += 1


def run(settings: Settings, lake: Lake, port: int) -> int:
    """Serve until a signal arrives; returns 0. UserError: the port is taken. StageError: a part ended by itself."""
    _free(port)
    os.environ["SRT_HOME"] = str(settings.home)
    if file := find_settings_file():
        os.environ["SRT_SETTINGS"] = str(file)
    # Dagster's warnings about its preview API are of no use to users (see `cli.main`).
    os.environ.setdefault("PYTHONWARNINGS", "ignore:Specifying a partitions_def")
    with instance_of(settings) as instance:
        add_partitions(lake, instance, checkpoints.list_students(lake))
    console = terminal.console()
    console.print(Text(f"http://127.0.0.1:{port}  (Ctrl-C stops it; home: {settings.home})"), soft_wrap=True)
    with Asked() as asked, tempfile.TemporaryDirectory(prefix="srt-ui-") as folder, _heard(asked) as output:
        parts: dict[str, subprocess.Popen] = {}
        try:
            _start_all(parts, Path(folder), port, output, asked)
            _watch(parts, lambda: False, asked)
        except _Stopped:
            console.print(Text("stopping; runs that go on put down what they have"), soft_wrap=True)
        finally:
            _end_all(parts, asked)
    return 0


def _start_all(parts: dict[str, subprocess.Popen], folder: Path, port: int, output: int | None, asked: Asked) -> None:
    """Start the parts in order, and add each to `parts` when it is started."""

    def start(name: str, *words: str) -> None:
        command = [sys.executable, "-P", "-m", *words]
        parts[name] = subprocess.Popen(
            # An empty folder, because Dagster loads variables (PYTHONPATH too) from a file `.env` in its working
            # folder.
            command,
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_end_with_us,
        )

    code, workspace = folder / "code.socket", folder / "workspace.yaml"
    # Dagster imports modules from its working directory first, so that must not be the current folder.
    place = ("--module-name", "srt_assets.definitions", "--working-directory", str(folder))
    quiet = ("--location-name", LOCATION, "--log-level", "warning", "--inject-env-vars-from-instance")
    start("code server", "dagster", "code-server", "start", "--socket", str(code), *place, *quiet)
    _watch(parts, code.exists, asked)
    server = {"grpc_server": {"socket": str(code), "location_name": LOCATION}}
    workspace.write_text(yaml.safe_dump({"load_from": [server]}))
    start("web server", "srt_assets.defs.webserver", "--workspace", str(workspace), "--port", str(port))
    start("daemon", "dagster._daemon", "run", "--workspace", str(workspace))


def _watch(parts: dict[str, subprocess.Popen], ready: Callable[[], bool], asked: Asked) -> None:
    """Wait until `ready()`. StageError if a part ends before, _Stopped if the user asks to stop."""
    while not ready():
        if asked.times:
            raise _Stopped
        for name, process in parts.items():
            if process.poll() is not None:
                raise StageError(
                    f"the {name} ended unexpectedly (exit code {process.returncode})", "see its output above"
                )
        time.sleep(LOOK_EVERY_S)


def _end_all(parts: dict[str, subprocess.Popen], asked: Asked) -> None:
    """End the daemon first, because it would restart runs; then the code server with the runs, its children."""
    outer = [parts[name] for name in ("daemon", "web server") if name in parts]
    _end(outer, asked)
    _end([part for part in parts.values() if part not in outer], asked)


def _end(parts: Sequence[subprocess.Popen], asked: Asked) -> None:
    """Send SIGTERM to these parts and their children, then SIGKILL to those left after the grace time or a signal."""
    started: list[psutil.Process] = []
    grace_s = GRACE_S
    for part in parts:
        try:
            process = psutil.Process(part.pid)
            started += [process, *(below := process.children(recursive=True))]
            if len(below) > len(process.children()):  # a run is a child of the code server's child
                grace_s = RUNS_GRACE_S
            # To the whole session, as Ctrl-C would. A training has a session of its own; its parent signals it.
            os.killpg(part.pid, signal.SIGTERM)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    deadline, patience = time.monotonic() + grace_s, asked.times + 1
    while started and time.monotonic() < deadline and asked.times < patience:
        _, started = psutil.wait_procs(started, timeout=LOOK_EVERY_S)
    for process in started:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for part in parts:
        part.wait()


def _end_with_us() -> None:
    """Runs in a part before it starts: have the kernel send SIGTERM when this process is killed. Linux only."""
    if _LIBC:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def _heard(asked: Asked) -> Iterator[int | None]:
    """The descriptor for the parts' output, None to inherit. On a terminal it is shown here until a stop is asked."""
    if not terminal.is_terminal(sys.stderr):
        yield None
        return
    console = terminal.console(stderr=True)

    def show(line: str) -> None:
        if not asked.times:
            console.print(Text(line), soft_wrap=True)

    with terminal.relayed(show) as pipe:
        yield pipe


def _free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"port {port} of 127.0.0.1 cannot be used: {error.strerror}", "name another: srt ui --port 3001"
            ) from None
