"""How replies end: known words decide, every other word is a status with a name, and no old verdict changes."""

import shutil

import pytest

from srt_assets.core.errors import UserError
from srt_assets.core.teacher import ends, instructions, ledger, responses
from srt_assets.core.teacher.why_call import explain
from srt_assets.settings import Teacher
from tests.fake_openai import FakeOpenAI, Plan, good_reply
from tests.teacher_home import both, home, table, with_teacher
from tests.test_teacher_ledger import row, write

pytestmark = pytest.mark.usefixtures("quick_teacher")
UNKNOWN = ["abort", "error", "OTHER", "tool_calls", "Weird Word", "network_error", "FINISH_REASON_UNSPECIFIED", 3, True,
           {"type": "x"}]  # fmt: skip


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("table_of", [ends.WHOLE, ends.CUT, ends.FILTERED])
def test_every_known_word_of_every_provider_decides(tmp_path, table_of, batch):
    words = sorted({word for of_provider in table_of.values() for word in of_provider})
    status = {"WHOLE": "ok", "CUT": "truncated_reply", "FILTERED": "refused"}
    name = next(name for name in status if getattr(ends, name) is table_of)

    def answer(body, nth):
        number = next(n for n in range(len(words)) if f"item {n}." in str(body))
        return Plan(finish_reason=words[number])

    with FakeOpenAI(answer) as fake:
        settings, lake = home(tmp_path, len(words), api_base=fake.base, batch=batch)
        assert instructions.STAGE.run(settings, lake).stats[status[name]] == len(words) == fake.calls
    rows = table(lake, "SELECT DISTINCT native_finish_reason FROM teacher_calls")
    assert sorted(word for (word,) in rows) == words


@pytest.mark.parametrize("batch", [False, True])
def test_no_other_word_is_a_good_end_and_none_is_asked_twice(tmp_path, batch):
    def answer(body, nth):
        number = next(n for n in range(13) if f"item {n}." in str(body))
        gone = {"finish_reason": "gone"} if number == 12 else {}
        return Plan(finish_reason=[*UNKNOWN, None, "", "stop"][number], choice=gone)

    with FakeOpenAI(answer) as fake:
        settings, lake = home(tmp_path, 13, api_base=fake.base, batch=batch)
        stats = instructions.STAGE.run(settings, lake).stats
        assert stats["unknown_finish"] == fake.calls == 13 and "ok" not in stats
        assert "abort (1)" in stats["unknown_finish_reasons"] and "none (3)" in stats["unknown_finish_reasons"]
        assert instructions.STAGE.run(settings, lake).cached and fake.calls == 13
    notes = table(lake, "SELECT error FROM teacher_calls WHERE native_finish_reason = 'abort'")
    assert "'abort'" in notes[0][0] and 'teacher.good_finish_reasons = ["abort"]' in notes[0][0]
    ((sample,),) = table(lake, "SELECT sample_id FROM teacher_calls WHERE native_finish_reason = 'Weird Word'")
    assert "'Weird Word'" in explain(settings, lake, sample)[0].why


def test_an_empty_reply_with_an_unknown_end_is_not_asked_again(tmp_path):
    with FakeOpenAI(lambda body, nth: Plan("empty", finish_reason="abort")) as fake:
        settings, lake = home(tmp_path, 2, api_base=fake.base)
        assert instructions.STAGE.run(settings, lake).stats["unknown_finish"] == fake.calls == 2


def test_of_two_reasons_the_bad_one_counts(tmp_path):
    """OpenRouter passes on the provider's own word beside `stop`."""
    with FakeOpenAI(lambda body, nth: Plan(choice={"native_finish_reason": "abort"})) as fake:
        settings, lake = home(tmp_path, 1, api_base=fake.base)
        assert instructions.STAGE.run(settings, lake).stats["unknown_finish"] == 1
    with FakeOpenAI(lambda body, nth: Plan(finish_reason="length", choice={"native_finish_reason": "STOP"})) as fake:
        settings, lake = home(tmp_path / "other", 1, api_base=fake.base)
        assert instructions.STAGE.run(settings, lake).stats["truncated_reply"] == 1


def test_a_word_of_the_settings_makes_replies_good_that_are_paid_and_no_longer_when_it_goes(tmp_path):
    with FakeOpenAI(lambda body, nth: Plan(finish_reason="Done_Well" if "item 0." in str(body) else "stop")) as fake:
        settings, lake = home(tmp_path, 3, api_base=fake.base)
        assert instructions.STAGE.run(settings, lake).stats["unknown_finish"] == 1
        known = with_teacher(settings, good_finish_reasons=("done_well",))
        stats = instructions.STAGE.run(known, lake).stats
        assert (stats["ok"], stats["ended_by_setting"], fake.calls) == (3, 1, 3)
        assert instructions.STAGE.run(known, lake).cached
        assert instructions.STAGE.run(settings, lake).stats["unknown_finish"] == 1 and fake.calls == 3


@pytest.mark.parametrize("word", ["length", "MAX_TOKENS", "content_filter"])
def test_a_word_that_is_known_as_bad_cannot_be_made_good(word):
    with pytest.raises(ValueError, match="means that the reply was"):
        Teacher(good_finish_reasons=(word,))


@pytest.mark.parametrize("batch", [False, True])
def test_twenty_unknown_ends_in_a_row_stop_the_run_and_the_word_is_named(tmp_path, batch):
    with FakeOpenAI(lambda body, nth: Plan(finish_reason="abort")) as fake:
        settings, lake = home(tmp_path, 60, api_base=fake.base, batch=batch)
        with pytest.raises(UserError, match=r"'abort'.*\n.*teacher\.good_finish_reasons = \[\"abort\"\]"):
            instructions.STAGE.run(settings, lake)
        paid = fake.calls
        assert paid == 60 if batch else 20 <= paid < 40
        good = with_teacher(settings, good_finish_reasons=("abort",))
        assert instructions.STAGE.run(good, lake).stats["ok"] == 60 and fake.calls == 60


def test_nineteen_or_another_word_between_them_stop_nothing():
    streak = ends.Streak(("fine",))
    for native in [*["abort"] * 19, "stop", *["abort"] * 19, "error", *["abort"] * 19, "fine", *["abort"] * 19]:
        streak.add(ends.end_of(native), native)
    with pytest.raises(UserError):
        streak.add(ends.UNKNOWN, "abort")


def test_a_missing_end_marker_is_ok_and_counted(tmp_path):
    def answer(body, nth):
        text = good_reply(body)
        return Plan(text=text.removesuffix(" [End]") if "item 0." in str(body) else text)

    with FakeOpenAI(answer) as fake:
        settings, lake = home(tmp_path, 3, api_base=fake.base)
        first, second = both(settings, lake)
        assert (first.stats["ok"], first.stats["no_end_marker"], second.stats["no_end_marker"]) == (3, 1, 1)


def test_thoughts_that_used_up_the_tokens_are_named(tmp_path):
    usage = {"prompt_tokens": 9, "completion_tokens": 300, "completion_tokens_details": {"reasoning_tokens": 299}}

    def answer(body, nth):
        if "item 0." in str(body):
            return Plan("empty", finish_reason="length", message={"reasoning_content": "Let me see"}, usage=usage)
        if "item 1." in str(body):
            return Plan(text="<think>Let me", finish_reason="length")
        return Plan(finish_reason="length")

    with FakeOpenAI(answer) as fake:
        settings, lake = home(tmp_path, 3, api_base=fake.base)
        stats = instructions.STAGE.run(settings, lake).stats
        assert (stats["truncated_reply"], stats["thoughts_used_up_tokens"], fake.calls) == (3, 2, 3)
    rows = table(lake, "SELECT error, thoughts, reasoning_tokens FROM teacher_calls ORDER BY reasoning_tokens")
    assert rows[0][0].startswith("the model's thoughts used up") and "(299 of them)" in rows[0][0]
    assert rows[0][1:] == ("Let me see", 299)
    assert sorted("thoughts" in error for error, *_ in rows) == [False, True, True]


OLD_ROWS = [("stop", None, "ok"), ("length", None, "truncated_reply"), ("tool_calls", None, "truncated_reply"),
            ("error", None, "truncated_reply"), (None, None, "truncated_reply"), ("content_filter", None, "refused"),
            ("stop", "[THINK]{good}[/THINK]nothing", "ok")]  # fmt: skip


def test_replies_of_older_programs_keep_their_verdict(tmp_path):
    """Their rows have no word of the provider's own; what LiteLLM called `stop` was one."""
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, len(OLD_ROWS), api_base=fake.base)
        instructions.STAGE.run(settings, lake)
        calls = table(lake, "SELECT call_key, sample_id, reply FROM teacher_calls ORDER BY call_key")
        shutil.rmtree(lake.directory(ledger.TABLE))
        (lake.directory("candidates", instructions.PARTITION) / "_manifest.json").unlink()
        rows = []
        for (key, sample, reply), (finish, text, _) in zip(calls, OLD_ROWS, strict=True):
            old = {"purpose": "reflect_instruction", "finish_reason": finish, "api_base": fake.base, "max_tokens": 300}
            rows.append(row(key, sample_id=sample, reply=(text or "{good}").format(good=reply), **old))
        write(lake, *rows)
        stats = instructions.STAGE.run(settings, lake).stats
        assert fake.calls == len(OLD_ROWS) and "unknown_finish_reasons" not in stats
    sql = "SELECT status FROM candidates WHERE candidate = 'reflected_instruction' ORDER BY call_key"
    assert [status for (status,) in table(lake, sql)] == [status for *_, status in OLD_ROWS]


def test_a_ledger_of_both_programs_is_sealed_and_read(tmp_path):
    from srt_assets.core.teacher import sealing
    from srt_assets.core.teacher.lookup import Lookup

    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 2, api_base=fake.base)
        write(lake, row("old"))
        sealing.seal(lake)
        both(settings, lake)
    with Lookup(lake) as lookup:
        keys = [key for (key,) in table(lake, "SELECT call_key FROM teacher_calls")]
        natives = [known.reply.native_finish_reason for known in lookup.known(keys).values()]
    assert sorted(natives, key=str) == [None] + ["stop"] * 6 and len(keys) == 7
    assert ledger.TABLE == "teacher_calls" and responses.STAGE.run(settings, lake).cached
