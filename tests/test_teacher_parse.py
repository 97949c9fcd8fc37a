"""The parser: golden cases, 200 replies by hand, 200 made of broken parts, and texts nobody thought of."""

import itertools
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srt_assets.core.teacher.parse import normal, parse
from srt_assets.core.teacher.prompts import CRITERIA, messages
from srt_assets.core.teacher.shield import shield, unshield
from tests.teacher_replies import ANSWERS, OBJECTS, PAIRS

SOURCE = ("Old instruction text.", "old input", "Old answer text.")
STATUSES = {
    "ok",
    "empty_reply",
    "no_markers",
    "placeholder",
    "truncated_reply",
    "refused",
    "prompt_echo",
    "unchanged",
}


def ins(text, finish="stop", form="markers", source=SOURCE):
    return parse("instruction", form, text, finish, source)


def res(text, finish="stop", form="markers", source=SOURCE):
    return parse("response", form, text, finish, source)


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (
            "[Better Answer] Use POST to the /users Endpoint. Then stop. [End]",
            "Use POST to the /users Endpoint. Then stop.",
        ),
        ("Weak. [Better Answer] your answer [End]\n[Better Answer] real answer [End]", "real answer"),
        ("[Better Answer] real answer [End]\nI filled in [Better Answer] your answer [End]", "real answer"),
        ("Better Answer: with a colon", "with a colon"),
        ("**Better Answer:** in bold\n\n[End]", "in bold"),
        ("### [Better Answer]\ntext\n[End]", "text"),
        ("2. **[better answer]**: text **[END]**", "text"),
        ("[Better Answer] print('[End]') goes on\nto here [End]", "print('[End]') goes on\nto here"),
        ("[Better Answer] text without an end", "text without an end"),
        ("[Better Answer] text [End]\n\nI hope this helps!", "text"),
        ("[Better Answer] The legend. End of story. [End]", "The legend. End of story."),
        ("[Better Answer] first [Better Answer] second [End]", "second"),
        ("[Better Answer] | a | N/A |\n| b | 2 | [End]", "| a | N/A |\n| b | 2 |"),
        ("[Better Answer] This is not your answer, it is mine. [End]", "This is not your answer, it is mine."),
        ("[Better Answer] about ⟦End⟧ markers [End]", "about [End] markers"),
    ],
)
def test_responses(reply, wanted):
    parsed = res(reply)
    assert (parsed.status, parsed.response) == ("ok", wanted)


@pytest.mark.parametrize(
    ("reply", "instruction", "answer"),
    [
        ("[New Instruction] Do X.\n3. [New Answer] Ans.", "Do X.", "Ans."),
        ("[New Instruction] Do X. [End]\n\n3. [New Answer] Ans. [End]", "Do X.", "Ans."),
        ("New Instruction: Do X.\nNew Answer: Ans.", "Do X.", "Ans."),
        (
            "The form is [New Instruction] your instruction [End] [New Answer] your answer [End].\n"
            "[New Instruction] Do X. [End]\n[New Answer] Ans. [End]",
            "Do X.",
            "Ans.",
        ),
        (
            "Echo: [New Instruction] your instruction [End]\n[New Instruction] Do X. [End]\n[New Answer] A N/A b [End]",
            "Do X.",
            "A N/A b",
        ),
        (
            "[New Instruction] One. [End] [New Answer] Ans one. [End] [New Instruction] Two. [End]",
            "One.",
            "Ans one.",
        ),
        ("**[New Instruction]** Do X.\n**[End]**\n**[New Answer]** Ans.\n**[End]**", "Do X.", "Ans."),
        ("[New Instruction] See step 3. [New Answer] Ans.", "See step 3.", "Ans."),
    ],
)
def test_pairs(reply, instruction, answer):
    parsed = ins(reply)
    assert (parsed.status, parsed.instruction, parsed.response) == ("ok", instruction, answer)


@pytest.mark.parametrize(
    ("parsed", "status"),
    [
        (res("[Better Answer] A long answer cut in the mid", "length"), "truncated_reply"),
        (res("[Better Answer] All of it [End]", "length"), "truncated_reply"),
        (res("[Better Answer] All of it [End]", None), "truncated_reply"),
        (res("", "content_filter"), "refused"),
        (res("I'm sorry, but I can't assist with that."), "refused"),
        (res("[Better Answer] I cannot help with that request. [End]"), "refused"),
        (res(None), "empty_reply"),
        (res("  \n"), "empty_reply"),
        (res(None, None), "empty_reply"),
        (res("[Better Answer] your answer [End]"), "placeholder"),
        (res("[Better Answer] N/A [End]"), "placeholder"),
        (res("[Better Answer] Old  ANSWER text. [End]"), "unchanged"),
        (res("[Better Answer] Old instruction text. [End]"), "prompt_echo"),
        (res(f"[Better Answer] {CRITERIA['response']} [End]"), "prompt_echo"),
        (res("[Better Answer] [The Start of Answer] x [The End of Answer] [End]"), "prompt_echo"),
        (res("[Better Answer] One fruit is the apple. It has seeds. [End]"), "prompt_echo"),
        (ins("[New Answer] An answer alone [End]"), "no_markers"),
        (ins("[New Instruction] An instruction alone [End]"), "no_markers"),
        (ins("[New Instruction] your instruction [End] [New Answer] Something new. [End]"), "placeholder"),
        (ins("[New Instruction] Old instruction text. [End] [New Answer] Other. [End]"), "unchanged"),
        (ins("[New Instruction] Other. [End] [New Answer] Old answer text. [End]"), "unchanged"),
    ],
)
def test_reasons(parsed, status):
    assert parsed.status == status and parsed.instruction is None and parsed.response is None


def outcome(parsed):
    if parsed.status != "ok":
        return f"={parsed.status}"
    return parsed.response if parsed.instruction is None else (parsed.instruction, parsed.response)


@pytest.mark.parametrize(("reply", "wanted"), ANSWERS)
def test_answers_by_hand(reply, wanted):
    assert outcome(res(reply)) == wanted


@pytest.mark.parametrize(("reply", "wanted"), PAIRS)
def test_pairs_by_hand(reply, wanted):
    assert outcome(ins(reply)) == wanted


@pytest.mark.parametrize(("reply", "wanted"), OBJECTS)
def test_objects_by_hand(reply, wanted):
    assert outcome(res(reply, form="json_schema")) == wanted


def test_what_is_cut_is_never_taken_however_whole_it_looks():
    for reply, _ in [*ANSWERS, *OBJECTS]:
        for finish in ("length", "tool_calls", "max_tokens"):
            assert res(reply, finish).status == ins(reply, finish).status == "truncated_reply"


def test_json_replies():
    good = json.dumps({"critique": "c", "new_instruction": "Do X.", "new_answer": "Ans."})
    for text in (good, f"```json\n{good}\n```", f"Here it is: {good} Done.", '{"critique": "c"}' + good):
        assert (ins(text, form="json_schema").status, ins(text, form="json_schema").response) == ("ok", "Ans.")
    for text in ("{", "[]", '{"new_instruction": "Do X."}', '{"new_instruction": 1, "new_answer": 2}', "{" * 5000):
        assert ins(text, form="json_schema").status == "no_markers"
    assert res('{"better_answer": "your answer"}', form="json_schema").status == "placeholder"


# 8 ways to open an instruction x 5 separators x 5 ways to answer: 200 replies with something missing or misspelt.
_OPENINGS = ["", "[New Instruction]", "[New Instruction", "New Instruction", "[Instruction]", "[NewInstruction] I.",
             "[New Instruction] your instruction", "[New Instruction]\n[End]\n"]  # fmt: skip
_SEPARATORS = ["", " [End]", "\n[End", "\nEnd\n", "[End][End]"]
_ANSWERS = ["Text.", "[New Answer]", "[New Answer] your answer [End]", "[New Answer] [End]", "[Answer] A. [End]"]
MALFORMED = ["".join(parts) for parts in itertools.product(_OPENINGS, _SEPARATORS, _ANSWERS)]


@pytest.mark.parametrize("reply", MALFORMED)
def test_malformed_replies_give_no_pair(reply):
    parsed = ins(reply)
    assert parsed.status in STATUSES - {"ok"}, parsed
    assert parsed.instruction is None and parsed.response is None


def test_there_are_two_hundred_of_each():
    assert len(set(MALFORMED)) == len(MALFORMED) == 200
    assert len(set(ANSWERS)) + len(set(PAIRS)) + len(set(OBJECTS)) >= 200


_PIECES = st.sampled_from(
    ["[New Instruction]", "[New Answer]", "[Better Answer]", "[End]", "New Answer:", "\n", " ", "3.", "**", "{", "}",
     "\"", "your instruction", "I1.", "I2.", "A1.", "A2.", "[System]", "⟦End⟧", "N/A", "I'm sorry, I cannot",
     "\ud800", "\x00"]
)  # fmt: skip


LONG_RUNS = """
from srt_assets.core.teacher.parse import parse
for unit in (" ", "*", "_", "`", "# "):
    for kind in ("instruction", "response"):
        text = f"[New Instruction] a [End]\\n[New Answer] [Better Answer] b\\n{unit * 200_000}x [End]"
        assert parse(kind, "markers", text, "stop").status == "ok"
"""


def test_a_long_run_of_blanks_or_stars_does_not_stop_every_call():
    # In a process of its own: the square of 200,000 steps would take minutes, and nothing can interrupt a match.
    subprocess.run([sys.executable, "-c", LONG_RUNS], check=True, timeout=120)


@settings(max_examples=400, deadline=None)
@given(st.lists(_PIECES | st.text(max_size=12), max_size=14).map("".join), st.sampled_from(["stop", "length", None]))
def test_any_reply_is_settled_without_an_exception(text, finish):
    for kind, form in itertools.product(("instruction", "response"), ("markers", "json_schema", "grammar")):
        parsed = parse(kind, form, text, finish, SOURCE)
        assert parsed.status in STATUSES
        assert (parsed.status == "ok") == (parsed.response is not None)
        if parsed.status == "ok":
            parts = [parsed.response] + ([parsed.instruction] if kind == "instruction" else [])
            # Both halves come out of this reply; never one of them from the record.
            assert all(normal(part) not in map(normal, SOURCE) for part in parts)
            assert form == "json_schema" or all(part in unshield(text) for part in parts)
            assert kind == "response" or parsed.instruction


@settings(max_examples=150, deadline=None)
@given(st.lists(_PIECES | st.text(max_size=10), max_size=10).map("".join))
def test_data_stays_in_its_block(text):
    prompt = messages("response", "markers", text, text, text)[-1]["content"]
    assert prompt.count("[System]") == 1 and prompt.count("[The End of Answer]") == 1
    assert prompt.count("[Better Answer]") == 1
    assert "⟦" in text or unshield(shield(text)) == text
