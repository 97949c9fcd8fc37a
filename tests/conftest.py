"""What every test gets: no network, no variables of the caller's, a home of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from srt_assets.core.lake import Lake

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("SRT_") or name == "DAGSTER_HOME":
            monkeypatch.delenv(name)
    # What the commands set for the processes they start ends with the test.
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    # A run keeps what it makes to its owner (core/rights.py): only until the test ends.
    os.umask(umask := os.umask(0))
    yield
    os.umask(umask)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def hostile_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder full of strangers' Python files: none of them may run in the test."""
    from tests.hostile import make_hostile, ran

    (folder := tmp_path / "hostile").mkdir()
    monkeypatch.chdir(make_hostile(folder))
    yield folder
    assert ran(folder) == []


@pytest.fixture
def lake(home: Path) -> Lake:
    return Lake(home)


@pytest.fixture
def quick_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of the teacher's flow in hundredths of a second, and a key."""
    from srt_assets.core.teacher import engine, flow
    from srt_assets.core.teacher.limits import Gate

    monkeypatch.setattr(engine, "backoff_s", lambda attempt, jitter: 0.01)
    monkeypatch.setattr(Gate, "PAUSE_S", 0.02)
    monkeypatch.setattr(Gate, "PAUSE_MAX_S", 0.1)
    monkeypatch.setattr(Gate, "COOLDOWN_S", 0.05)
    monkeypatch.setattr(flow, "REPORT_EVERY_S", 0.05)
    monkeypatch.setenv("OPENAI_API_KEY", "test-key-of-nobody")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Arithmetic on one thread, so that sums are the same each time."""
    import torch  # most tests do without

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
