"""What was started in the background of a script can be stopped like anything else; `nohup` keeps its meaning."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

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
    assert len(started) >= 4, "dagster dev, code server, web server, daemon"
    for process in started:
        process.send_signal(signal.SIGHUP)
    assert answers(port) and {p.pid for p in left(site)} >= {p.pid for p in started}
    ui.send_signal(number)
    ui.wait(HANGS_S)
    _, alive = psutil.wait_procs(started, timeout=HANGS_S)
    assert not alive and not left(site), said.read_text()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))
