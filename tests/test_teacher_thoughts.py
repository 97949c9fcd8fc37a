"""Thoughts never become data, whatever stands around them: every mark of the table in every place of a reply."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srt_assets.core.teacher.parse import parse
from tests.teacher_thoughts import CLOSED_ONLY, NEVER_EATEN, OBJECTS, PAIRS, REPLIES

ALL = PAIRS | CLOSED_ONLY
DRAFT = "Maybe [Better Answer] DRAFT. [End]"
REAL = "\n[Better Answer] Real. [End]"
EACH = pytest.mark.parametrize(("opening", "closing"), ALL.values(), ids=ALL)


def taken(reply: str, form: str = "markers", kind: str = "response") -> str:
    parsed = parse(kind, form, reply, "stop")
    return parsed.response if parsed.status == "ok" else f"={parsed.status}"


@EACH
def test_an_answer_after_thoughts_is_one_and_a_draft_in_them_is_not(opening, closing):
    assert taken(f"{opening}{DRAFT}{closing}{REAL}") == "Real."
    assert taken(f"{opening}{DRAFT}{closing}I have nothing to add.") == "=no_markers"
    assert taken(f"  \n{opening}\n{DRAFT}\n{closing}\n\n{REAL}") == "Real."
    pair = (
        f"{opening}[New Instruction] d [End][New Answer] d [End]{closing}[New Instruction] i [End][New Answer] a [End]"
    )
    assert taken(pair, kind="instruction") == "a"
    draft, real = json.dumps({"better_answer": "DRAFT"}), json.dumps({"better_answer": "Real."})
    assert taken(f"{opening}{draft}{closing}\n{real}", "json_schema") == "Real."
    assert taken(f"{opening}{draft}{closing}\nNothing.", "json_schema") == "=no_markers"


@pytest.mark.parametrize(("opening", "closing"), PAIRS.values(), ids=PAIRS)
def test_thoughts_that_never_close_hold_no_answer(opening, closing):
    assert taken(f"{opening}{DRAFT}") == "=no_markers"
    assert taken(f"{opening}{json.dumps({'better_answer': 'DRAFT'})}", "json_schema") == "=no_markers"


@pytest.mark.parametrize("name", sorted(PAIRS.keys() - NEVER_EATEN))
def test_an_opening_that_the_template_has_written_counts(name):
    closing = PAIRS[name][1]
    assert taken(f"{DRAFT}{closing}{REAL}") == "Real."
    assert taken(f"{DRAFT}{closing}I have nothing to add.") == "=no_markers"


@EACH
def test_thoughts_inside_an_answer_are_not_part_of_it(opening, closing):
    for reply in (
        f"[Better Answer]\n{opening}Hm, d.{closing} Real. [End]",
        f"[Better Answer] {opening}d{closing} Real.",
    ):
        assert taken(reply) in ("Real.", "=no_markers")
    assert "Hm" not in taken(f"[Better Answer] First.\n{opening}\nHm.\n{closing}\nReal. [End]")
    text = json.dumps({"better_answer": f"{opening}Hm, d.{closing}\nReal."})
    assert taken(text, "json_schema") in ("Real.", "=no_markers")


@pytest.mark.parametrize(("reply", "wanted"), REPLIES)
def test_replies_by_hand(reply, wanted):
    assert taken(reply) == wanted


@pytest.mark.parametrize(("reply", "wanted"), OBJECTS)
def test_objects_by_hand(reply, wanted):
    assert taken(reply, "json_schema") == wanted


_PIECES = st.sampled_from(
    [
        *(mark for pair in ALL.values() for mark in pair),
        *("[Better Answer]", "[End]", "\n", " ", "`", "```", "a. ", "{"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(PAIRS)), st.lists(_PIECES | st.text(max_size=5), max_size=8).map("".join))
def test_whatever_follows_an_opening_a_draft_before_its_closing_is_not_taken(name, rest):
    opening, closing = PAIRS[name]
    reply = f"{opening}x SECRET x{closing}{rest}"
    for form in ("markers", "json_schema"):
        assert "SECRET" not in taken(reply, form)


LONG_RUNS = """
from srt_assets.core.teacher.parse import parse
from tests.teacher_thoughts import PAIRS
for pair in PAIRS.values():
    for unit in (*pair, f"a {pair[0]} b "):
        for form in ("markers", "json_schema"):
            parse("response", form, "[Better Answer] b " + unit * (15_000 // len(unit)) + " [End]", "stop")
"""


def test_a_long_run_of_marks_does_not_stop_every_call():
    # In a process of its own: the square of so many steps would take minutes, and nothing can interrupt a match.
    subprocess.run([sys.executable, "-c", LONG_RUNS], check=True, timeout=300)
