"""What is stopped ends with one sentence: in the background of a script, on a terminal, at every moment of a run."""

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fake_openai import FakeOpenAI, Plan

from tests.background import IN_BACKGROUND
from tests.hostile import make_hostile, ran

ROOT = Path(__file__).parent.parent
MARK = "SRT_TEST_UI"
# Only guards against hangs.
HANGS_S = 120

HEARD = """
import signal
from srt_assets.core.signals import listen
listen()
names = ("SIGINT", "SIGTERM", "SIGHUP")
print(*(signal.getsignal(getattr(signal, name)) == signal.SIG_IGN for name in names))
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_int_and_term_are_heard_again_and_hup_stays_ignored() -> None:
    command = ["sh", "-c", 'trap "" INT TERM HUP; exec "$@"', "sh", sys.executable, "-c", HEARD]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False False True", "True"]


TORCH = """
from srt_assets.core.training.launch import hang_up
import os; os.environ.update(hang_up())
from torch.distributed.run import get_args_parser
print(getattr(get_args_parser().parse_args(["script"]), "signals_to_handle", "it takes none"))
"""


def test_torchs_launcher_leaves_hup_ignored() -> None:
    command = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-c", TORCH]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "SIGHUP" not in done.stdout, done.stdout


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A folder to start `srt ui` in; whatever was started there and is left is ended."""
    (tmp_path / "srt.toml").write_text('[project]\nhome = "home"\n')
    make_hostile(tmp_path)
    yield tmp_path
    for process in left(tmp_path):
        process.kill()
    assert ran(tmp_path) == []


def left(site: Path) -> list[psutil.Process]:
    """Living processes that carry the mark of this site."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(site) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=HANGS_S) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_srt_ui_in_the_background_ends_when_told_and_not_when_the_terminal_goes(
    site: Path, number: signal.Signals
) -> None:
    port, said = free_port(), site / "said"
    # As the command does: without the current folder on its path.
    srt = [sys.executable, "-P", "-c", "from srt_assets.cli import main; main()", "ui", "--port", str(port)]
    env = {**os.environ, "SRT_SETTINGS": str(site / "srt.toml"), MARK: str(site), "PYTHONPATH": str(ROOT)}
    with said.open("w") as log:
        ui = subprocess.Popen([*IN_BACKGROUND, "nohup", *srt], cwd=site, env=env, stdout=log, stderr=log)
    deadline = time.monotonic() + HANGS_S
    while not answers(port):
        assert ui.poll() is None and time.monotonic() < deadline, said.read_text()
        time.sleep(0.1)
    started = left(site)
    assert len(started) >= 4, "the command, code server, web server, daemon"
    for headers, path in (({"Host": f"evil.example:{port}"}, "/"), ({}, "/graphql?query=mutation%7BsetNuxSeen%7D")):
        with pytest.raises(urllib.error.HTTPError, match=r"403|405"):
            urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers))
    for process in started:
        process.send_signal(signal.SIGHUP)
    assert answers(port) and {p.pid for p in left(site)} >= {p.pid for p in started}
    ui.send_signal(number)
    ui.wait(HANGS_S)
    _, alive = psutil.wait_procs(started, timeout=HANGS_S)
    assert not alive and not left(site), said.read_text()
    assert ui.returncode == 0 and "Traceback" not in said.read_text()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_is_answered_by_one_sentence(tmp_path: Path) -> None:
    """Of the terminal's own kind: SIGINT to every process that works for the command, Dagster's helpers too."""
    (tmp_path / "d.json").write_text('[{"instruction": "a", "output": "b"}]')
    with FakeOpenAI(lambda body, nth: Plan(latency_s=HANGS_S)) as teacher:
        (tmp_path / "srt.toml").write_text(
            "[project]\nhome = 'home'\n[[datasets]]\nname = 'd'\npath = 'd.json'\n"
            f"[teacher]\nmodel = 'openai/fake'\napi_base = '{teacher.base}'\n"
        )
        env = {**os.environ, "OPENAI_API_KEY": "key-of-nobody", "PYTHONPATH": str(ROOT), "TERM": "xterm"}
        srt = [sys.executable, "-P", "-c", "from srt_assets.cli import main; main()", "run", "reflected_instructions"]
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(tmp_path)
            os.execve(srt[0], srt, env)
        told, asked_at, status = "", 0, None
        deadline = time.monotonic() + HANGS_S
        while status is None:
            assert time.monotonic() < deadline, told
            if teacher.calls and not asked_at:
                asked_at = len(told)
                os.write(terminal, b"\x03")
            try:
                told += os.read(terminal, 65536).decode() if select.select([terminal], [], [], 0.05)[0] else ""
            except OSError:  # its other end is closed
                status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 130 and "Traceback" not in told, told
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip() for line in re.split(r"[\r\n]+", told[asked_at:])]
    ours = [line for line in lines if line.strip("^C") and not re.match(r"(\^C)?(raw_dataset|reflected_instr)", line)]
    assert ours == ["stopped; everything done so far is kept, `srt run` goes on from here"]


LOST = """
import os, signal, sys, time, weakref
from srt_assets.core.signals import not_lost

class Thing: ...

def in_an_import():
    exec(compile("signal.raise_signal(number)", "<frozen importlib._bootstrap>", "exec"))
    print("the import was over")

def in_a_callback():
    thing = Thing()
    watched = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing
    print("Python has dropped it")

number = getattr(signal, sys.argv[2])
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    with not_lost(KeyboardInterrupt):
        globals()[sys.argv[1]]()
        time.sleep(60)
except KeyboardInterrupt:
    print("heard")
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("where", ["in_an_import", "in_a_callback"])
def test_an_interrupt_is_not_lost(where: str, number: str) -> None:
    command = [sys.executable, "-c", LOST, where, number]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_S, cwd=ROOT)
    assert (done.stdout.splitlines()[-1], len(done.stdout.splitlines())) == ("heard", 2) and done.stderr == ""
