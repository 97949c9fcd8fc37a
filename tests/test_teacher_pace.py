"""The teacher side as a process: how fast it may ask, what a stop keeps, what it loads."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from srt_assets.core.teacher import instructions, responses
from tests.background import IN_BACKGROUND
from tests.fake_openai import FakeOpenAI, Plan, busiest_window
from tests.teacher_home import both, home, table

pytestmark = pytest.mark.usefixtures("quick_teacher")


@pytest.mark.slow
def test_waiting_in_the_queue_is_no_timeout(tmp_path):
    with FakeOpenAI(lambda body, nth: Plan(latency_s=0.3)) as fake:
        settings, lake = home(tmp_path, 24, api_base=fake.base, timeout_s=3.0, concurrency=2)
        assert instructions.STAGE.run(settings, lake).stats["ok"] == 24 == fake.calls
        assert fake.most_in_flight == 2


def test_no_pool_of_connections_queues_calls_whose_clock_runs():
    from srt_assets.core.teacher.client import litellm

    constants = litellm().constants
    assert min(constants.AIOHTTP_CONNECTOR_LIMIT, constants.AIOHTTP_CONNECTOR_LIMIT_PER_HOST) == 100_000


def test_no_queue_of_reports_nobody_reads_grows_behind_the_calls(tmp_path):
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 3, api_base=fake.base)
        instructions.STAGE.run(settings, lake)
    # After the run: whoever imports it first decides about its limits.
    from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

    assert GLOBAL_LOGGING_WORKER._queue is None


@pytest.mark.slow
def test_interrupt_keeps_every_reply_received(tmp_path):
    code = """
import sys, json, signal, threading, time, os
from pathlib import Path
from tests.teacher_home import home
from srt_assets.core.teacher import instructions
class Terminated(BaseException): ...
def stop(*_): raise Terminated()
signal.signal(signal.SIGTERM, stop)
settings, lake = home(Path(sys.argv[1]), 60, api_base=sys.argv[2], concurrency=4)
print("ready", flush=True)
try: instructions.STAGE.run(settings, lake)
except Terminated: print("stopped", flush=True)
"""
    with FakeOpenAI(lambda body, nth: Plan(latency_s=0.15)) as fake:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), fake.base],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        while fake.calls < 9 and process.poll() is None:
            time.sleep(0.02)
        process.terminate()
        out, _ = process.communicate(timeout=120)
        assert "stopped" in out
        received = fake.calls
        settings, lake = home(tmp_path, 60, api_base=fake.base, concurrency=16)
        assert table(lake, "SELECT count(*) FROM teacher_calls WHERE status = 'ok'") == [(received,)]
        assert instructions.STAGE.run(settings, lake).stats["calls_paid"] == 60 - received
        assert all(paid == 1 for paid in fake.paid.values())


@pytest.mark.slow
@pytest.mark.parametrize("before", [(), IN_BACKGROUND], ids=["", "in the background"])
def test_ctrl_c_in_srt_run_keeps_every_reply_and_the_next_run_pays_the_rest(tmp_path, before):
    settings, lake = home(tmp_path, 20)
    file = tmp_path / "srt.toml"
    with FakeOpenAI(lambda body, nth: Plan(latency_s=0.2)) as fake:
        data = f'[[datasets]]\nname = "d"\npath = "data.json"\n[project]\nhome = "{settings.home}"\n'
        file.write_text(data + f'[teacher]\nmodel = "openai/fake"\napi_base = "{fake.base}"\nconcurrency = 2\n')
        command = [sys.executable, "-c", "from srt_assets.cli import main; main()", "run", "reflected_instructions"]
        options = {"env": os.environ | {"SRT_SETTINGS": str(file)}, "cwd": tmp_path, "text": True}
        process = subprocess.Popen([*before, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        while fake.calls < 7 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 130 and "stopped" in out, out
        received = fake.calls
        assert table(lake, "SELECT count(*) FROM teacher_calls WHERE status = 'ok'") == [(received,)]
        settings, lake = home(tmp_path, 20, api_base=fake.base)
        assert instructions.STAGE.run(settings, lake).stats["calls_paid"] == 20 - received
        assert all(paid == 1 for paid in fake.paid.values())


def test_two_processes_may_write_at_once(tmp_path):
    from srt_assets.core.teacher.ledger import Ledger, segments
    from srt_assets.core.teacher.sealing import seal

    with FakeOpenAI(lambda body, nth: Plan(latency_s=0.02)) as fake:
        settings, lake = home(tmp_path, 8, api_base=fake.base)
        import asyncio

        with Ledger(lake) as other:
            asyncio.run(other.append({"call_key": "k", "status": "ok", "created_at": None}))
            instructions.STAGE.run(settings, lake)
            assert [path.name for path in segments(lake)] == [other.name]
        assert seal(lake) == 1
    assert table(lake, "SELECT count(*), count(DISTINCT segment) FROM teacher_calls") == [(9, 2)]


def test_no_call_imports_no_litellm(tmp_path):
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 2, api_base=fake.base)
        both(settings, lake)
    for partition in (instructions.PARTITION, responses.PARTITION):
        (lake.directory("candidates", partition) / "_manifest.json").unlink()
    code = f"""
import sys
from srt_assets.settings import Settings
from srt_assets.core.lake import Lake
from srt_assets.core.teacher import instructions, responses
settings = Settings.model_validate_json({settings.model_dump_json()!r})
for stage in (instructions, responses): assert not stage.STAGE.run(settings, Lake(settings.home)).cached
assert not {{"litellm", "xllamacpp"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_rate_limits_hold_in_every_window(tmp_path, monkeypatch):
    from srt_assets.core.teacher import session
    from srt_assets.core.teacher.limits import RateLimit

    monkeypatch.setattr(session, "RateLimit", lambda rpm, tpm: RateLimit(rpm, tpm, window_s=1.0, margin_s=0.1))
    with FakeOpenAI(lambda body, nth: Plan(latency_s=0.05)) as fake:
        settings, lake = home(tmp_path, 45, api_base=fake.base, rpm=15, concurrency=16)
        instructions.STAGE.run(settings, lake)
        requests, _ = busiest_window(fake.seen, 1.0)
        assert 10 <= requests <= 15


def test_rate_limits_hold_from_one_asset_to_the_next(tmp_path, monkeypatch):
    from srt_assets.core.teacher import session
    from srt_assets.core.teacher.limits import RateLimit

    monkeypatch.setattr(session, "WINDOW_S", 2.0)
    monkeypatch.setattr(session, "RateLimit", lambda rpm, tpm: RateLimit(rpm, tpm, window_s=2.0, margin_s=0.1))
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 6, api_base=fake.base, rpm=8, concurrency=8)
        both(settings, lake)
        requests, _ = busiest_window(fake.seen, 2.0)
        assert fake.calls == 18 and requests <= 8


@pytest.mark.parametrize("set_by_days", [-1, 1])
def test_a_clock_that_is_set_between_two_assets_changes_no_limit(tmp_path, monkeypatch, set_by_days):
    from datetime import datetime, timedelta

    from srt_assets.core.teacher import lookup, session
    from srt_assets.core.teacher.limits import RateLimit

    class Set(datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime.now(zone) + timedelta(days=set_by_days)

    monkeypatch.setattr(session, "WINDOW_S", 2.0)
    monkeypatch.setattr(session, "RateLimit", lambda rpm, tpm: RateLimit(rpm, tpm, window_s=2.0, margin_s=0.1))
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 4, api_base=fake.base, rpm=6, concurrency=8)
        instructions.STAGE.run(settings, lake)
        monkeypatch.setattr(lookup, "datetime", Set)
        responses.STAGE.run(settings, lake)
        requests, _ = busiest_window(fake.seen, 2.0)
        assert fake.calls == 12 and requests <= 6
