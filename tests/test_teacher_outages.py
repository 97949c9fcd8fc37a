"""Outages are no verdicts: they are waited for, spend no attempt, and make no record hopeless; what fails for its own
sake is final all the same."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from srt_assets.core.errors import StageError
from srt_assets.core.teacher import engine, instructions
from srt_assets.core.teacher.failures import Failure, of_http
from srt_assets.core.teacher.health import Health
from srt_assets.core.teacher.why_call import explain
from tests.fake_openai import FakeOpenAI, Plan
from tests.teacher_home import home, table, with_teacher

pytestmark = pytest.mark.usefixtures("quick_teacher")
WAIT = {"message": "Too many tokens, please wait before trying again.", "code": None, "type": None}
THROTTLED = {"message": "no", "type": "ThrottlingException"}
# What a teacher that is down or too busy answers: status, error.
OUTAGES = [("529", None), ("503", None), ("500", None), ("502", None), ("504", None), ("429", None), ("400", WAIT),
           ("400", THROTTLED), ("403", {"message": "no", "code": "rate_limit_exceeded"})]  # fmt: skip


def ids(outage):
    return f"{outage[0]}{(outage[1] or {}).get('type') or ''}"


@pytest.mark.parametrize("outage", OUTAGES[::2], ids=ids)
def test_an_outage_is_waited_for_and_spends_no_attempt(tmp_path, outage):
    refused = 12

    def answer(body, nth):
        return Plan(outage[0], error=outage[1]) if fake.calls < refused else Plan()

    with FakeOpenAI(answer) as fake:
        settings, lake = home(tmp_path, 4, api_base=fake.base, max_attempts=1)
        stats = instructions.STAGE.run(settings, lake).stats
        assert stats["ok"] == 4 and fake.calls >= refused
    assert table(lake, "SELECT DISTINCT status, attempt FROM teacher_calls") == [("ok", 1)]


@pytest.mark.parametrize("outage", OUTAGES[::3], ids=ids)
def test_patience_ends_the_run_and_the_next_one_asks_every_record(tmp_path, outage):
    down = [True]
    with FakeOpenAI(lambda body, nth: Plan(outage[0], error=outage[1]) if down else Plan()) as fake:
        settings, lake = home(tmp_path, 4, api_base=fake.base, max_attempts=1, patience_s=0.4)
        with pytest.raises(StageError, match=rf"has answered nothing.*patience_s = 0\.4.*the last: {outage[0]}"):
            instructions.STAGE.run(settings, lake)
        down.clear()
        assert instructions.STAGE.run(settings, lake).stats["ok"] == 4


@pytest.mark.parametrize("fault", ["hang", "close", "garbage"])
def test_an_outage_that_may_be_billed_ends_the_run_soon_and_makes_no_record_hopeless(tmp_path, fault):
    down = [True]
    with FakeOpenAI(lambda body, nth: Plan(fault) if down else Plan()) as fake:
        settings, lake = home(tmp_path, 6, api_base=fake.base, max_attempts=2, timeout_s=0.3)
        with pytest.raises(StageError, match="all failed"):
            instructions.STAGE.run(settings, lake)
        assert fake.calls <= 6 * 2
        down.clear()
        assert instructions.STAGE.run(with_teacher(settings, timeout_s=9.0), lake).stats["ok"] == 6
    # What may have been billed is on disk; one call at most has spent an attempt, before anybody knew.
    attempts = table(lake, "SELECT attempt, count(*) FROM teacher_calls WHERE status <> 'ok' GROUP BY 1 ORDER BY 1")
    assert attempts[0][0] == 0 and sum(n for attempt, n in attempts if attempt) <= 2


def test_an_outage_in_the_middle_of_a_run_costs_no_record(tmp_path):
    def answer(body, nth):
        return Plan("500") if 10 <= fake.calls < 30 else Plan(latency_s=0.01)

    with FakeOpenAI(answer) as fake:
        settings, lake = home(tmp_path, 30, api_base=fake.base, max_attempts=2)
        assert instructions.STAGE.run(settings, lake).stats["ok"] == 30


def test_what_fails_while_others_are_answered_is_final(tmp_path):
    def answer(body, nth):
        return Plan("500") if any(f"item {n}." in str(body) for n in (3, 4)) else Plan(latency_s=0.02)

    with FakeOpenAI(answer) as fake:
        settings, lake = home(tmp_path, 60, api_base=fake.base, max_attempts=3, concurrency=4)
        stats = instructions.STAGE.run(settings, lake).stats
        assert (stats["ok"], stats["call_failed"]) == (58, 2) and 58 + 6 <= fake.calls < 58 + 12
        assert instructions.STAGE.run(settings, lake).cached


@pytest.mark.slow
def test_a_call_that_is_throttled_for_ever_holds_no_run_up_and_is_asked_again_by_the_next(tmp_path):
    busy = [True]

    def answer(body, nth):
        return Plan("429", headers={"retry-after-ms": "1"}) if busy and "item 0." in str(body) else Plan(latency_s=0.05)

    with FakeOpenAI(answer) as fake:
        settings, lake = home(tmp_path, 40, api_base=fake.base, patience_s=0.3, concurrency=2)
        stats = instructions.STAGE.run(settings, lake).stats
        assert (stats["ok"], stats["teacher_busy"]) == (39, 1)
        state = instructions.STAGE.state(settings, lake)
        assert (state.state, state.why) == ("changed", "teacher_busy")
        ((sample,),) = table(lake, "SELECT sample_id FROM candidates WHERE status = 'teacher_busy'")
        assert "too busy to answer" in explain(settings, lake, sample)[0].why
        busy.clear()
        asked = fake.calls
        assert instructions.STAGE.run(settings, lake).stats["ok"] == 40 and fake.calls == asked + 1
        assert instructions.STAGE.run(settings, lake).cached


def test_words_alone_are_not_believed_for_ever_while_others_are_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "WORDS_BELIEVED", 5)

    def answer(body, nth):
        return Plan("400", error=WAIT) if "item 0." in str(body) else Plan(latency_s=0.05)

    with FakeOpenAI(answer) as fake:
        settings, lake = home(tmp_path, 30, api_base=fake.base, concurrency=2)
        stats = instructions.STAGE.run(settings, lake).stats
        assert (stats["ok"], stats["call_failed"]) == (29, 1)
        assert instructions.STAGE.run(settings, lake).cached


def test_batches_that_meet_an_outage_give_no_record_up(tmp_path):
    down = [True]
    with FakeOpenAI(lambda body, nth: Plan("503") if down else Plan()) as fake:
        settings, lake = home(tmp_path, 3, api_base=fake.base, batch=True, max_attempts=1)
        with pytest.raises(StageError, match=r"every call of the batch .* met a teacher that is down"):
            instructions.STAGE.run(settings, lake)
        down.clear()
        assert instructions.STAGE.run(settings, lake).stats["ok"] == 3 and fake.calls == 6


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        (400, "context_length_exceeded", "too many tokens, please retry with a shorter prompt", "context_length"),
        (400, None, "This model's maximum context length is 4096 tokens", "bad_request"),
        (400, None, "generated: rate limit words do not matter", "bad_request"),
        (400, None, "The word 'throttle' is not allowed", "bad_request"),
        (400, None, "The model is currently overloaded", "throttled"),
        (422, "slow_down", "x", "throttled"),
        (429, "insufficient_quota", "please wait", "no_funds"),
        (503, None, "x", "overloaded"),
        (520, None, "x", "server_error"),
        (401, None, "please try again later", "authentication"),
    ],
)
def test_what_means_not_now(status, code, message, kind):
    assert of_http(status, code, "E", message).kind == kind


def test_a_prompt_that_is_too_long_and_a_wait_are_told_apart(tmp_path):
    """LiteLLM takes both for a prompt that is too long."""
    long = {"message": "This model's maximum context length is 10 tokens. Please reduce your prompt.", "code": None}

    def answer(body, nth):
        if "item 0." in str(body):
            return Plan("400", error=long)
        return Plan("400", error=WAIT) if nth < 2 else Plan()

    with FakeOpenAI(answer) as fake:
        settings, lake = home(tmp_path, 3, api_base=fake.base)
        stats = instructions.STAGE.run(settings, lake).stats
        assert (stats["too_long"], stats["ok"]) == (1, 2)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_progress_says_how_long_it_waits_and_for_what():
    clock = Clock()
    state = Health("http://x", 3600, 8, clock=clock, under_way=4)
    assert state.waits_for() == ""
    message = "litellm.APIError: APIError: OpenAIException - Overloaded"
    state.failed("a", Failure("throttled", "overloaded", "E", message, status=529), True)
    clock.now = 300.0
    assert state.waits_for() == "5 min of 60 min, 529 Overloaded"
    state.answered()
    assert state.waits_for() == ""
    with pytest.raises(StageError, match="asks to wait 120 min"):
        state.failed("a", Failure("throttled", "throttled", "E", "x", retry_after_s=7200.0, status=429), True)


def test_one_failure_among_many_calls_closes_nothing():
    state = Health("http://x", 3600, 64, under_way=64)
    state.answered()
    failure = Failure("transient", "server_error", "E", "x", status=500)
    for n in range(16):
        assert not state.is_down(failure), n
        state.failed(str(n), failure, True)
    assert state.is_down(failure)
    state.answered()
    assert not state.is_down(failure)


CTRL_C = """
import sys
from pathlib import Path
from srt_assets.core.signals import listen
listen()  # a test that was started in the background ignores SIGINT, and so would this
from tests.teacher_home import home
from srt_assets.core.teacher import engine, instructions
settings, lake = home(Path(sys.argv[1]), 4, api_base=sys.argv[2], timeout_s=60.0)
seen = []
def report(done, total, unit, **facts):
    if "503" in facts.get("waiting", "") and not seen:
        seen.append(facts); print(facts["waiting"], flush=True)
try: instructions.STAGE.run(settings, lake, progress=report)
except KeyboardInterrupt: print("stopped", flush=True)
"""


@pytest.mark.slow
def test_ctrl_c_ends_the_wait_at_once(tmp_path):
    with FakeOpenAI(lambda body, nth: Plan("503", headers={"retry-after": "600"})) as fake:
        process = subprocess.Popen(
            [sys.executable, "-c", CTRL_C, str(tmp_path), fake.base],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        assert process.stdout is not None
        told = process.stdout.readline()
        assert "of 60 min, 503" in told
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0].strip() == "stopped"
        assert time.monotonic() - sent < 30  # not 600
