"""`srt doctor --ping`: one call, and what it tells of a teacher before a run meets it."""

import pytest

from srt_assets.commands import doctor
from srt_assets.core.lake import Lake
from srt_assets.core.teacher import health
from srt_assets.core.teacher.ping import ping
from srt_assets.settings import Project, Settings, Teacher
from tests.fake_openai import FakeOpenAI, Plan
from tests.teacher_home import home, table

pytestmark = pytest.mark.usefixtures("quick_teacher")
GOOD = "[Better Answer] The sky is blue. [End]"
PRICES = {"usd_per_million_input": 100.0, "usd_per_million_output": 100.0, "context_tokens": 4096}
TEMPERATURE = {"message": "'temperature' does not support 0.0", "param": "temperature", "code": "unsupported_value"}


def told(tmp_path, plan, **teacher):
    with FakeOpenAI(lambda body, nth: plan) as fake:
        options = {"model": "openai/fake", "api_base": fake.base, "timeout_s": 5.0} | PRICES | teacher
        settings = Settings(project=Project(home=tmp_path / "none"), teacher=Teacher(**options))
        found = list(ping(settings, Lake(settings.home)))
        assert fake.calls <= 1 and not settings.home.exists()
    return found


def test_a_good_teacher_is_described(tmp_path):
    found = told(tmp_path, Plan(text=GOOD, latency_s=0.1))
    assert [line.level for line in found] == ["ok"] * 6
    words = " ".join(line.what for line in found)
    parts = (
        "answered in ",
        "tokens/s",
        "100 in, 100 out",
        "may have 2048 tokens",
        "4096 together",
        "'stop': a good end",
    )
    for part in (*parts, "no thoughts", "has the form"):
        assert part in words


@pytest.mark.parametrize(
    ("plan", "options", "words"),
    [
        (Plan("401"), {}, "refuses every call"),
        (Plan("404"), {}, "check teacher.model"),
        (Plan("400", error=TEMPERATURE), {}, "set teacher.temperature = 1"),
        (Plan("529"), {}, "too busy to answer"),
        (Plan("500"), {}, "gives no reply: 500"),
        (Plan("hang"), {"timeout_s": 0.3}, "raise teacher.timeout_s"),
        (Plan("no_choices"), {}, "cannot be read"),
        (Plan(text=GOOD, finish_reason="abort"), {}, 'set teacher.good_finish_reasons = ["abort"]'),
        (Plan(text="", finish_reason="length", message={"reasoning_content": "Hm"}), {}, "thoughts used up"),
        (Plan(text=GOOD, finish_reason="content_filter"), {}, "held it back"),
        (Plan(), {"api_base": "http://127.0.0.1:9/v1"}, "cannot be reached"),
        (Plan(), {"model": "nonsense"}, "names no provider"),
        (Plan(), {"model": "openai/gpt-5-mini"}, "set teacher.temperature = 1"),
    ],
)
def test_what_would_end_a_run_or_spoil_it_is_an_error(tmp_path, plan, options, words):
    errors = [line for line in told(tmp_path, plan, **options) if line.level == "error"]
    assert len(errors) == 1 and words in " -> ".join(errors[0])


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(text=f"<think>Hm</think>{GOOD}"), "between '<think>' and '</think>'"),
        (Plan(text=f"Hm</think>{GOOD}"), "between '</think>'"),
        (Plan(text=f"<|channel|>analysis<|message|>Hm<|end|><|channel|>final<|message|>{GOOD}"), "<|channel|>analysis"),
        (Plan(text=GOOD, message={"reasoning_content": "Hm"}), "in a field of their own"),
        (Plan(text="The sky is blue."), "cannot be used (no_markers)"),
        (Plan(text=GOOD, usage=None), "does not say how many tokens"),
    ],
)
def test_marks_of_thoughts_and_other_peculiarities_are_told(tmp_path, plan, words):
    found = told(tmp_path, plan)
    assert not [line for line in found if line.level == "error"]
    assert words in " ".join(line.what for line in found)


def test_in_a_home_the_call_is_in_the_ledger_and_the_doctor_says_it(tmp_path):
    with FakeOpenAI(lambda body, nth: Plan(text='{"critique": "", "better_answer": "Blue."}')) as fake:
        settings, lake = home(tmp_path, 1, api_base=fake.base, reply_format="json_schema", **PRICES)
        lines = list(doctor._pinged(settings))
        assert all(line.level == "ok" for line in lines) and fake.calls == 1
    from srt_assets.core.teacher import sealing

    sealing.seal(lake)
    assert table(lake, "SELECT purpose, status, cost_usd > 0 FROM teacher_calls") == [("ping", "ok", True)]


def test_the_doctor_without_a_ping_promises_nothing(monkeypatch):
    teacher = Teacher(model="openai/mine", api_base="http://127.0.0.1:9/v1", **PRICES)
    (finding,) = doctor._remote_teacher(teacher)
    assert finding.level == "ok" and "not called" in finding.what and "--ping" in finding.remedy
    monkeypatch.delenv("OPENAI_API_KEY")
    _, finding = doctor._remote_teacher(teacher)
    assert finding.level == "warning" and finding.what.startswith("OPENAI_API_KEY is not set")
    assert health.span(300) == "5 min"
