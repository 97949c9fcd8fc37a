"""What goes wrong on the way, kind by kind: retried or not, waited for or not, what it costs, what the user reads."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from srt_assets.core.errors import StageError, UserError
from srt_assets.core.teacher import health, instructions
from srt_assets.core.teacher.failures import retry_after
from tests.fake_openai import FakeOpenAI, Plan
from tests.teacher_home import home, table, with_teacher

PRICES = {"usd_per_million_input": 100.0, "usd_per_million_output": 100.0}


pytestmark = pytest.mark.usefixtures("quick_teacher")


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "later"}, None),
        ({"retry-after": ""}, None),
        # The server's clock is a day ahead of ours, or behind it.
        ({"retry-after": "Fri, 02 Jan 1970 00:01:40 GMT", "date": "Fri, 02 Jan 1970 00:01:30 GMT"}, 10.0),
        ({"retry-after": "Wed, 31 Dec 1969 00:01:40 GMT", "date": "Wed, 31 Dec 1969 00:01:30 GMT"}, 10.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT", "date": "today"}, 40.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, wanted):
    assert retry_after(headers, now=60.0) == wanted


@pytest.mark.parametrize("status", ["429", "503"])
def test_nothing_is_sent_before_the_time_the_server_asked_for(tmp_path, status):
    def once(body, nth):
        return Plan(status, headers={"retry-after": "0.4"}) if nth == 0 else Plan()

    with FakeOpenAI(once) as fake:
        settings, lake = home(tmp_path, 1, api_base=fake.base)
        assert instructions.STAGE.run(settings, lake).stats["ok"] == 1
        first, second = (seen.at for seen in fake.seen)
    assert second - first >= 0.4


def test_a_server_that_asks_to_wait_for_hours_is_an_answer_not_a_hang(tmp_path):
    with FakeOpenAI(lambda body, nth: Plan("429", headers={"retry-after": "86400"})) as fake:
        settings, lake = home(tmp_path, 2, api_base=fake.base)
        with pytest.raises(StageError, match="asks to wait 1440 min"):
            instructions.STAGE.run(settings, lake)


@pytest.mark.parametrize("kind", ["500", "502", "503", "529", "408", "close", "half", "garbage", "429"])
def test_half_of_all_calls_meet_one_kind_of_fault(tmp_path, kind):
    def faulty(body, nth):
        dice = random.Random(f"{body['messages'][-1]['content']}/{nth}")
        return Plan(kind if dice.random() < 0.5 else "")

    with FakeOpenAI(faulty) as fake:
        settings, lake = home(tmp_path, 12, api_base=fake.base, max_attempts=20)
        assert instructions.STAGE.run(settings, lake).stats["ok"] == 12
        assert len(fake.paid) == 12 and all(paid == 1 for paid in fake.paid.values())
        assert fake.calls > 12


def test_nine_of_ten_calls_throttled_still_end_with_every_row(tmp_path):
    def faulty(body, nth):
        dice = random.Random(f"{body['messages'][-1]['content']}/{nth}")
        return Plan("429" if dice.random() < 0.9 else "", headers={"retry-after-ms": "5"})

    with FakeOpenAI(faulty) as fake:
        settings, lake = home(tmp_path, 12, api_base=fake.base, max_attempts=1)
        stats = instructions.STAGE.run(settings, lake).stats
        assert stats["ok"] == 12 and stats["throttled"] == fake.calls - 12


@pytest.mark.parametrize(
    "usage",
    [{"prompt_tokens": "10", "completion_tokens": "5"}, {"prompt_tokens": 10**30, "completion_tokens": 3},
     {"prompt_tokens": 7}, "many", [1], {"prompt_tokens": 0, "completion_tokens": 0}],
)  # fmt: skip
def test_odd_usage_fields_lose_no_reply(tmp_path, usage):
    with FakeOpenAI(lambda body, nth: Plan(usage=usage)) as fake:
        settings, lake = home(tmp_path, 2, api_base=fake.base, **PRICES)
        assert instructions.STAGE.run(settings, lake).stats["ok"] == 2 and fake.calls == 2
    assert table(lake, "SELECT bool_and(cost_usd > 0 AND cost_usd < 1) FROM teacher_calls") == [(True,)]


@pytest.mark.parametrize(("fault", "status"), [("hang", "timeout"), ("close", "connection"), ("garbage", "bad_reply")])
def test_a_hard_budget_counts_calls_that_may_have_been_billed(tmp_path, fault, status):
    with FakeOpenAI(lambda body, nth: Plan(fault)) as fake:
        options = {"concurrency": 1, "timeout_s": 0.2, "max_attempts": 20, "max_tokens": 300, "budget_usd": 0.7}
        settings, lake = home(tmp_path, 5, api_base=fake.base, **options, **PRICES)
        stats = instructions.STAGE.run(settings, lake).stats
        assert stats["over_budget"] >= 1 and fake.calls < 10
    rows = table(lake, "SELECT status, sum(cost_usd) BETWEEN 0.3 AND 0.7 FROM teacher_calls GROUP BY 1")
    assert rows == [(status, True)]
    assert stats["cost_usd"] == pytest.approx(table(lake, "SELECT sum(cost_usd) FROM teacher_calls")[0][0])


def test_a_refused_call_costs_nothing(tmp_path):
    def answer(body, nth):
        return Plan("500") if nth == 0 and "item 0." in str(body) else Plan(latency_s=0.3)

    with FakeOpenAI(answer) as fake:
        settings, lake = home(tmp_path, 2, api_base=fake.base, **PRICES)
        instructions.STAGE.run(settings, lake)
    rows = table(lake, "SELECT status, min(cost_usd) > 0, count(*) FROM teacher_calls GROUP BY ALL ORDER BY ALL")
    assert rows == [("ok", True, 2), ("server_error", False, 1)]


def test_doctor_says_what_a_teacher_lacks(monkeypatch):
    from srt_assets.commands.doctor import _remote_teacher
    from srt_assets.settings import Teacher

    def levels(**teacher):
        return [finding.level for finding in _remote_teacher(Teacher(**teacher))]

    assert levels(model="openai/gpt-4o-mini", budget_usd=1.0) == ["ok"]
    assert levels(model="openai/mine", api_base="http://127.0.0.1:9/v1") == ["ok", "warning", "warning"]
    assert levels(model="openai/mine", budget_usd=1.0) == levels(model="nonsense") == ["error"]
    monkeypatch.delenv("OPENAI_API_KEY")
    assert levels(model="openai/gpt-4o-mini") == ["error"]


def test_an_unpriced_model_is_said_and_never_costs_zero(tmp_path):
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 1, api_base=fake.base)
        assert "no price" in str(instructions.STAGE.run(settings, lake).stats["cost_usd"])
        assert table(lake, "SELECT cost_usd FROM teacher_calls") == [(None,)]
        priced, other = home(tmp_path / "priced", 1, api_base=fake.base, **PRICES)
        assert instructions.STAGE.run(priced, other).stats["cost_usd"] > 0


def test_the_message_says_why_a_teacher_cannot_be_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(health, "UNREACHABLE_AT_START_S", 0.1)
    settings, lake = home(tmp_path, 1, api_base="http://127.0.0.1:9/v1")
    with pytest.raises(StageError, match=r"Connect call failed"):
        instructions.STAGE.run(settings, lake)
    settings = with_teacher(settings, api_base="http://no-such-host.invalid/v1")
    with pytest.raises(StageError, match=r"cannot be reached: .*(name|resolution|Name)"):
        instructions.STAGE.run(settings, lake)


def test_a_server_that_sends_a_blank_now_and_then_times_out(tmp_path):
    fake = FakeOpenAI(lambda body, nth: Plan("trickle" if nth == 0 else ""))
    with fake:
        settings, lake = home(tmp_path, 2, api_base=fake.base, timeout_s=2.0)
        stats = instructions.STAGE.run(settings, lake).stats
    assert stats["ok"] == 2 and stats["failed_timeout"] == 2
    assert "teacher.timeout_s" in table(lake, "SELECT error FROM teacher_calls WHERE status = 'timeout'")[0][0]


def test_a_refusal_in_its_own_field_is_one_and_no_correction_is_paid(tmp_path):
    for batch in (False, True):
        with FakeOpenAI(lambda body, nth: Plan("refusal")) as fake:
            options = {"api_base": fake.base, "reply_format": "json_schema", "batch": batch}
            settings, lake = home(tmp_path / str(batch), 2, **options)
            assert instructions.STAGE.run(settings, lake).stats["refused"] == 2 and fake.calls == 2


def test_a_call_that_fails_while_the_run_ends_is_not_sent_again(tmp_path):
    with FakeOpenAI(lambda body, nth: Plan("500", latency_s=1.0)) as fake:
        settings, lake = home(tmp_path, 8, api_base=fake.base)

        def report(*_, **__):
            if fake.calls >= 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            instructions.STAGE.run(settings, lake, progress=report)
        assert fake.calls == 8


def test_a_server_that_is_set_up_wrong_ends_the_run_and_no_record_is_given_up(tmp_path):
    error = {"message": "default chat template is no longer allowed", "type": "BadRequestError", "code": 400}
    wrong = [True]
    with FakeOpenAI(lambda body, nth: Plan("400", error=error) if wrong else Plan()) as fake:
        settings, lake = home(tmp_path, 100, api_base=fake.base)
        with pytest.raises(UserError, match=r"refuses every call.*chat template"):
            instructions.STAGE.run(settings, lake)
        assert fake.calls < 50
        wrong.clear()
        assert instructions.STAGE.run(settings, lake).stats["ok"] == 100


def test_calls_in_flight_when_a_stopped_run_ends_are_no_attempt_but_money_of_the_budget(tmp_path):
    slow = [True]
    with FakeOpenAI(lambda body, nth: Plan("hang" if slow else "")) as fake:
        settings, lake = home(tmp_path, 3, api_base=fake.base, max_attempts=1, timeout_s=60.0, **PRICES)

        def report(*_, **__):
            if slow and fake.calls == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            instructions.STAGE.run(settings, lake, progress=report)
        rows = table(lake, "SELECT status, cost_usd > 0 FROM teacher_calls")
        assert rows == [("interrupted", True)] * 3
        slow.clear()
        assert instructions.STAGE.run(settings, lake, progress=report).stats["ok"] == 3


@pytest.mark.slow
def test_more_calls_than_files_is_not_blamed_on_the_teacher(tmp_path):
    code = """
import resource, sys
from pathlib import Path
from srt_assets.core.errors import UserError
from srt_assets.core.teacher import instructions
from tests.teacher_home import home
settings, lake = home(Path(sys.argv[1]), 300, api_base=sys.argv[2], concurrency=300)
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
try: instructions.STAGE.run(settings, lake)
except UserError as error: print(error)
"""
    with FakeOpenAI(lambda body, nth: Plan(latency_s=2.0)) as fake:
        command = [sys.executable, "-c", code, str(tmp_path), fake.base]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, timeout=120)
    assert "teacher.concurrency = 300 needs more open files" in done.stdout


def test_half_a_price_is_refused(tmp_path):
    settings, lake = home(tmp_path, 1, usd_per_million_input=1.0, budget_usd=1.0)
    with pytest.raises(UserError, match="only one of"):
        instructions.STAGE.run(settings, lake)
