"""Settings that a model refuses are named, with what to set instead: before the first call, or at the first refusal."""

import pytest

from srt_assets.core.errors import UserError
from srt_assets.core.teacher import instructions
from srt_assets.core.teacher.client import connect
from srt_assets.core.teacher.failures import of_http
from srt_assets.core.teacher.unfit import named
from srt_assets.settings import Teacher
from tests.fake_openai import FakeOpenAI, Plan
from tests.teacher_home import home, table, with_teacher

pytestmark = pytest.mark.usefixtures("quick_teacher")
TEMPERATURE = {
    "message": "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is "
    "supported.",
    "type": "invalid_request_error",
    "param": "temperature",
    "code": "unsupported_value",
}


@pytest.mark.parametrize(
    ("options", "setting", "remedy"),
    [
        ({"model": "openai/gpt-5-mini"}, "teacher.temperature = 0.0", "set teacher.temperature = 1"),
        ({"model": "openai/o3", "temperature": 0.5}, "teacher.temperature = 0.5", "set teacher.temperature = 1"),
        ({"model": "cohere/command-r", "reply_format": "json_schema"}, "teacher.reply_format", '"markers"'),
        ({"model": "openai/gpt-4o-mini", "reasoning_effort": "low"}, "reasoning_effort = 'low'", "reasoning_effort"),
        (
            {"model": "openai/o3", "temperature": 1.0, "parameters": {"top_p": 0.5}},
            "parameters.top_p",
            "take top_p out",
        ),
        ({"model": "openai/m", "parameters": {"mock_response": "x"}}, "parameters.mock_response", "take mock_response"),
    ],
)
def test_what_litellm_knows_is_said_before_the_first_call(monkeypatch, options, setting, remedy):
    monkeypatch.setenv("COHERE_API_KEY", "test-key-of-nobody")
    with pytest.raises(UserError) as raised:
        connect(Teacher(**options))
    assert setting in raised.value.message and remedy in raised.value.remedy
    assert "drop" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [{"model": "openai/gpt-5-mini", "temperature": 1}, {"model": "openai/mine", "api_base": "http://127.0.0.1:9/v1"},
     {"model": "openai/gpt-4o-mini", "reply_format": "json_schema", "parameters": {"top_p": 0.9, "seed": 1}},
     {"model": "openai/mine", "reasoning_effort": "low", "parameters": {"chat_template_kwargs": {"thinking": False}}},
     {"model": "openai/gpt-5.1", "reasoning_effort": "none"}],
)  # fmt: skip
def test_what_a_model_takes_is_not_refused(options):
    connect(Teacher(**options))


@pytest.mark.parametrize(("n", "batch"), [(1, False), (40, False), (4, True)])
def test_the_first_refusal_names_the_setting(tmp_path, monkeypatch, n, batch):
    with FakeOpenAI(lambda body, nth: Plan("" if body["temperature"] == 1 else "400", error=TEMPERATURE)) as fake:
        settings, lake = home(tmp_path, n, api_base=fake.base, batch=batch)
        with pytest.raises(
            UserError, match=r"refuses teacher\.temperature = 0\.0: .*\n.* set teacher\.temperature = 1"
        ):
            instructions.STAGE.run(settings, lake)
        assert batch or fake.calls <= 16
        assert instructions.STAGE.run(with_teacher(settings, temperature=1.0), lake).stats["ok"] == n
    assert table(lake, "SELECT count(*) FROM candidates WHERE status = 'call_failed'") == [(0,)]


@pytest.mark.parametrize(("n", "batch"), [(1, False), (40, False), (4, True)])
def test_a_run_whose_every_call_is_refused_fails_and_says_why(tmp_path, n, batch):
    wrong = [True]
    error = {"message": "default chat template is no longer allowed", "type": "BadRequestError", "code": 400}
    with FakeOpenAI(lambda body, nth: Plan("400", error=error) if wrong else Plan()) as fake:
        settings, lake = home(tmp_path, n, api_base=fake.base, batch=batch)
        for _ in range(2):
            with pytest.raises(UserError, match=r"refuses every call.*chat template"):
                instructions.STAGE.run(settings, lake)
        wrong.clear()
        assert instructions.STAGE.run(settings, lake).stats["ok"] == n


def test_a_refusal_beside_a_reply_is_its_records(tmp_path):
    error = {"message": "'temperature' is not supported here", "param": "temperature", "code": "unsupported_value"}

    def answer(body, nth):
        return Plan("400", error=error, latency_s=0.3) if "item 0." in str(body) else Plan()

    with FakeOpenAI(answer) as fake:
        settings, lake = home(tmp_path, 3, api_base=fake.base)
        stats = instructions.STAGE.run(settings, lake).stats
        assert (stats["ok"], stats["call_failed"]) == (2, 1)
        assert instructions.STAGE.run(settings, lake).cached


@pytest.mark.parametrize(
    ("message", "setting", "remedy"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
         "teacher.max_tokens = 2048", 'set teacher.max_tokens_name = "max_completion_tokens"'),
        ("max_tokens is too large: 100000. This model supports at most 16384 completion tokens, whereas you provided "
         "100000.", "teacher.max_tokens = 2048", "set teacher.max_tokens = 16384 or less"),
        ("max_tokens: 90000 > 8192, which is the maximum allowed number of output tokens", "teacher.max_tokens = 2048",
         "set teacher.max_tokens"),
        ("Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
         "teacher.reply_format", 'set teacher.reply_format = "markers"'),
        ("`temperature` (=0.0) has to be a strictly positive float", "teacher.temperature = 0.0",
         "set teacher.temperature = 1"),
        ("temperature must be between 0.1 and 0.9", "teacher.temperature = 0.0",
         "set teacher.temperature to a number between 0.1 and 0.9"),
        ("Only temperature=1 is supported, not temperature=0.0", "teacher.temperature", "set teacher.temperature = 1"),
        ("Unrecognized request argument: parameter `reasoning_effort`", "teacher.reasoning_effort = 'low'",
         "set teacher.reasoning_effort"),
        ("'top_p' may not be set", "teacher.parameters.top_p = 0.5", "take top_p out of teacher.parameters"),
    ],
)  # fmt: skip
def test_what_providers_say_is_understood(message, setting, remedy):
    teacher = Teacher(model="openai/m", reasoning_effort="low", parameters={"top_p": 0.5})
    found = named(of_http(400, None, "E", message), teacher)
    assert found is not None
    assert found[0].startswith(setting) and found[1].startswith(remedy)


@pytest.mark.parametrize(
    "message", ["default chat template", "invalid prompt: explain the temperature of the sun", "no"]
)
def test_other_refusals_name_no_setting(message):
    assert named(of_http(400, None, "E", message), Teacher(model="openai/m")) is None


def test_what_is_set_is_sent_and_is_part_of_what_makes_a_call(tmp_path):
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 2, api_base=fake.base)
        instructions.STAGE.run(settings, lake)
        more = {"reasoning_effort": "low", "parameters": {"top_p": 0.5, "chat_template_kwargs": {"thinking": False}}}
        changed = with_teacher(settings, max_tokens_name="max_completion_tokens", **more)
        assert instructions.STAGE.run(changed, lake).stats["calls_paid"] == 2
        sent = fake.seen[-1].body
        assert (sent["reasoning_effort"], sent["top_p"], sent["chat_template_kwargs"]) == (
            "low",
            0.5,
            {"thinking": False},
        )
        assert sent["max_completion_tokens"] == 300 and "max_tokens" not in sent
        assert instructions.STAGE.run(with_teacher(changed, batch=True), lake).cached
        batch = with_teacher(changed, batch=True, parameters={"top_p": 0.6})
        assert instructions.STAGE.run(batch, lake).stats["calls_paid"] == 2
        sent = fake.seen[-1].body
        assert (sent["top_p"], sent["max_completion_tokens"], sent["temperature"]) == (0.6, 300, 0.0)
        instructions.STAGE.run(settings, lake)
        assert fake.calls == 6
    rows = table(lake, "SELECT DISTINCT parameters FROM teacher_calls")
    assert len(rows) == 3 and (None,) in rows


@pytest.mark.parametrize("name", ["temperature", "api_key", "drop_params", "stop", "n", "messages"])
def test_what_the_program_sets_itself_is_no_further_parameter(name):
    with pytest.raises(ValueError, match="is not set here") as raised:
        Teacher(parameters={name: "sk-secret"})
    assert "sk-secret" not in str(raised.value.errors()[0]["msg"])


@pytest.mark.parametrize(
    "given",
    [
        {"aws_secret_access_key": "v4lue"},
        {"azure_ad_token": "v4lue"},
        {"token": "v4lue"},
        {"vertex_credentials": {"a": "v4lue"}},
        {"metadata": [{"Authorization": "v4lue"}]},
        {"user": "sk-abcdefgh1234567890v4lue"},
        {"user": "of the environment: v4lue-of-nobody"},
    ],
)
def test_a_secret_is_no_parameter(given, monkeypatch):
    """Parameters stand in the ledger and in manifests."""
    monkeypatch.setenv("OPENAI_API_KEY", "v4lue-of-nobody")
    with pytest.raises(ValueError, match="from the environment only") as raised:
        Teacher(parameters=given)
    assert "v4lue" not in str(raised.value.errors()[0]["msg"])


def test_parameters_with_tokens_in_their_names_are_no_secrets():
    given = {"min_tokens": 4, "stop_token_ids": [2], "chat_template_kwargs": {"skip_special_tokens": False}, "seed": 1}
    assert Teacher(parameters=given).sampling == given
