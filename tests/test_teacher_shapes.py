"""Replies in all the shapes that providers send: what can be read is read, what cannot is one status after one call."""

import pytest

from srt_assets.core.teacher import answers, instructions
from srt_assets.core.teacher.failures import Unreadable
from srt_assets.core.teacher.money import prices_of
from srt_assets.settings import Teacher
from tests.fake_openai import FakeOpenAI, Plan, good_reply
from tests.teacher_home import home, table

pytestmark = pytest.mark.usefixtures("quick_teacher")
PRICES = {"usd_per_million_input": 100.0, "usd_per_million_output": 100.0}
BOTH = pytest.mark.parametrize("batch", [False, True])


def thought(text):
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


# The content that a good reply's text is made to.
READABLE = [
    lambda text: [{"type": "text", "text": text}],
    lambda text: [{"type": "output_text", "text": text[:9]}, {"type": "text", "text": text[9:]}],
    lambda text: [{"text": text}],
    lambda text: {"type": "text", "text": text},
    lambda text: [text[:9], text[9:]],
    lambda text: [thought(text.replace("thorough", "DRAFT")), {"type": "text", "text": text}],
    lambda text: [{"type": "reasoning", "text": "DRAFT"}, {"type": "text", "text": text}, {"type": "reference"}],
    lambda text: [{"text": "DRAFT", "thought": True}, {"text": text}],
    lambda text: [{"type": "redacted_thinking", "data": "xx"}, {"type": "text", "text": text}],
]
UNREADABLE = [5, True, [5], [{"type": "image_url", "image_url": {"url": "x"}}], [{"type": "text", "text": 5}], [None],
              [{"type": "text", "text": "[New Instruction] a"}, {"type": "audio"}], {"kind": "x"}]  # fmt: skip


@BOTH
def test_what_can_be_read_is_read(tmp_path, batch):
    gone = [{"message": {"role": "gone"}}, {"message": {"content": "gone"}, "choice": {"text": None}}]

    def answer(body, nth):
        number = next(n for n in range(len(READABLE) + 2) if f"item {n}." in str(body["messages"]))
        text = good_reply(body)
        if number < len(READABLE):
            return Plan(message={"content": READABLE[number](text)})
        more = gone[number - len(READABLE)]
        return Plan(**more | ({"choice": {"text": text, "message": "gone"}} if "choice" in more else {}))

    with FakeOpenAI(answer) as fake:
        n = len(READABLE) + 2
        settings, lake = home(tmp_path, n, api_base=fake.base, batch=batch)
        assert instructions.STAGE.run(settings, lake).stats["ok"] == fake.calls == n
    assert table(lake, "SELECT count(*) FROM candidates WHERE response LIKE '%DRAFT%'") == [(0,)]
    assert table(lake, "SELECT count(*) FROM teacher_calls WHERE thoughts LIKE '%DRAFT%'") == [(3,)]


@BOTH
def test_what_cannot_be_read_is_one_status_after_one_call(tmp_path, batch):
    def answer(body, nth):
        number = next(n for n in range(11) if f"item {n}." in str(body["messages"]))
        if number == 8:
            return Plan("no_choices")
        return Plan(
            message={"content": UNREADABLE[number]} if number < 8 else {},
            choice={"message": "gone"} if number == 9 else {},
        )

    with FakeOpenAI(answer) as fake:
        settings, lake = home(tmp_path, 11, api_base=fake.base, batch=batch, **PRICES)
        stats = instructions.STAGE.run(settings, lake).stats
        assert (stats["unreadable_reply"], stats["ok"], fake.calls) == (10, 1, 11)
        (lake.directory("candidates", instructions.PARTITION) / "_manifest.json").unlink()
        assert instructions.STAGE.run(settings, lake).stats["unreadable_reply"] == 10 and fake.calls == 11
    rows = table(lake, "SELECT error, reply, cost_usd FROM teacher_calls WHERE status = 'unreadable_reply'")
    assert all(error.startswith("the teacher's reply cannot be read: ") and cost > 0 for error, _, cost in rows)
    # What was paid for is kept, readable or not.
    assert any("'image_url'" in error for error, *_ in rows) and all('"usage"' in reply for _, reply, _ in rows)


@pytest.mark.parametrize("thoughts", [{"reasoning_content": "x"}, {"reasoning": "x"}, {"thinking": "x"},
                                      {"reasoning_details": [{"type": "reasoning.text", "text": "x"}]}])  # fmt: skip
def test_thoughts_in_a_field_of_their_own_are_kept_apart(thoughts):
    body = {"choices": [{"message": {"content": "a", **thoughts}, "finish_reason": "stop"}], "usage": {}}
    answer = answers.read_body(body)
    assert (answer.text, answer.thoughts, answer.finish_reason) == ("a", "x", "stop")
    nothing = answers.read_body({"choices": [{"message": {"content": None, **thoughts}, "finish_reason": "stop"}]})
    assert (nothing.text, nothing.thoughts) == (None, "x")


def test_an_error_in_the_body_of_a_good_status_is_that_error():
    for error, kind in (({"code": 429, "message": "slow down"}, "throttled"), ({"code": 502}, "server_error"),
                        ({"code": 400, "message": "no"}, "bad_request"), ("boom", "server_error"),
                        ({"code": 401}, "authentication")):  # fmt: skip
        for body in ({"error": error}, {"error": error, "choices": None}, {"choices": [{"error": error}]}):
            with pytest.raises(Unreadable) as raised:
                answers.read_body(body)
            assert raised.value.failure.kind == kind


def test_an_error_in_the_body_of_a_good_status_is_waited_for(tmp_path):
    def answer(body, nth):
        return Plan("error_body", error={"code": 429, "message": "slow down"}) if nth < 3 else Plan()

    with FakeOpenAI(answer) as fake:
        settings, lake = home(tmp_path, 2, api_base=fake.base, max_attempts=1)
        stats = instructions.STAGE.run(settings, lake).stats
        assert (stats["ok"], stats["throttled"]) == (2, 6)


@pytest.mark.parametrize(
    ("raw", "native"),
    [
        ({"stop_reason": "pause_turn", "content": []}, "pause_turn"),
        ({"candidates": [{"finishReason": "OTHER"}]}, "OTHER"),
        ({"message": {}, "done_reason": "load"}, "load"),
        ({"results": [{"completionReason": "FINISHED"}]}, "FINISHED"),
        (
            {"status": "incomplete", "output": [], "incomplete_details": {"reason": "max_output_tokens"}},
            "max_output_tokens",
        ),
        ({"status": "completed", "output": []}, "completed"),
        ({"generated_text": "x"}, ""),
    ],
)
def test_the_providers_own_reason_is_found_where_litellm_says_stop(raw, native):
    from litellm import Choices, Message, ModelResponse

    response = ModelResponse(choices=[Choices(finish_reason="stop", message=Message(content="a"))])
    assert answers.read_response(response, raw, 0.0).native_finish_reason == native
    # Where LiteLLM does not show what came, its own word has to do.
    assert answers.read_response(response, None, 0.0).native_finish_reason == "stop"


def test_cached_input_is_priced_as_the_price_table_says():
    usage = {"prompt_tokens": 1000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 800}}
    body = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": usage}
    answer = answers.read_body(body)
    assert answer.cached_tokens == 800
    prices = prices_of(Teacher(model="openai/gpt-4o-mini"))
    assert prices.cached == prices.input / 2
    assert prices.cost(1000, 10, 800) == pytest.approx(prices.cost(600, 10))
    own = prices_of(Teacher(model="openai/gpt-4o-mini", **PRICES))
    assert own.cost(1000, 10, 800) == own.cost(1000, 10)
    usage["prompt_tokens_details"]["cached_tokens"] = 2000  # more than all of it: not believed
    assert answers.read_body(body).cached_tokens is None


def test_thoughts_that_are_counted_beside_the_reply_are_counted():
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 50}}
    body = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": usage}
    answer = answers.read_body(body)
    assert (answer.completion_tokens, answer.reasoning_tokens) == (55, 50)
