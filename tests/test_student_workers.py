"""Worker processes that end badly, and whose run does: nobody waits for ever, nobody stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import worker_doubles

from srt_assets.core.errors import StageError
from srt_assets.core.scoring import workers

RUN = """
if __name__ == "__main__":
    import time, worker_doubles
    from srt_assets.core.scoring import workers

    workers._work = worker_doubles.talks_for_ever
    answers = workers.score_chunks(None, ["cpu", "cpu"], [[]] * 6, print)
    next(answers)
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_worker_killed_in_the_middle_of_an_answer_is_an_error(monkeypatch):
    monkeypatch.setattr(workers, "_work", worker_doubles.killed_in_mid_answer)
    with pytest.raises(StageError, match=r"worker died \(exit code -9\)"):
        list(workers.score_chunks(None, ["lives", "dies"], [[]] * 4, print))  # type: ignore[arg-type]


@pytest.mark.slow
def test_workers_of_a_killed_run_go_even_with_answers_nobody_reads(tmp_path):
    (tmp_path / "run.py").write_text(RUN)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path])},
    ) as run:
        assert run.stdout is not None
        run.stdout.readline()
        left = psutil.Process(run.pid).children()
        assert len(left) >= 2
        run.kill()
    deadline = time.monotonic() + 120
    while left and time.monotonic() < deadline:
        left = [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        time.sleep(0.1)
    assert not left
