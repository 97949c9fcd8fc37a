"""What a row means: the forms of the fact sheet, mappings, fields beside the texts, and any JSON whatever."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from invented_fields import FIELDS, UNREAD
from invented_forms import CASES, Q, chat, said
from pydantic import ValidationError

from srt_assets.core.records.forms import fields
from srt_assets.core.records.forms.meaning import read_row, read_rows
from srt_assets.core.records.forms.result import REASONS, Pair, Read, is_filled
from srt_assets.core.records.forms.rules import Rules
from srt_assets.core.records.forms.table import FORMS
from srt_assets.core.records.forms.trees import FLAT
from srt_assets.core.records.writer import as_json
from srt_assets.settings import Dataset, Format

A = "Orrin."
QA = Pair(Q, "", A)


@pytest.mark.parametrize("name", CASES)
def test_a_form_becomes_what_its_author_meant(name: str) -> None:
    case = CASES[name]
    found = list(read_rows(enumerate(case.rows), Rules()))
    reads = [read for _, _, read in found]
    assert [index for index, _, _ in found] == list(range(len(case.rows)))
    assert [pair for read in reads for pair in read.records] == [Pair(*texts) for texts in case.records]
    assert [(index, why.reason) for index, _, read in found for why in read.rejects] == list(case.rejects)
    assert {why.reason for read in reads for why in read.rejects} <= REASONS.keys()
    given = [(other.kind, other.response) for read in reads for other in read.alternatives]
    assert given == list(case.alternatives)
    assert {name for read in reads if read.records for name in read.unread} == case.unread


def mapped(**more: Any) -> Rules:
    return Rules.of(Dataset(name="d", path="x.jsonl", **more))


def only(row: Any, rules: Rules) -> Read:
    return read_row(row, rules)


def reasons(read: Read) -> list[str]:
    return [why.reason for why in read.rejects]


PROBLEM = {"columns": {"instruction": "problem", "response": "solution"}}


def test_a_mapping_leaves_the_input_on_and_names_what_it_leaves_out() -> None:
    row = {"problem": Q, "solution": A, "input": "In the north.", "hints": ["x"], "uuid": "u"}
    read = only(row, mapped(**PROBLEM))
    assert read.records == [Pair(Q, "In the north.", A)]
    assert set(read.unread) == {"hints"} and set(read.unused) == {"uuid"}
    without = only(row, mapped(columns=PROBLEM["columns"] | {"input": ""}))
    assert without.records == [QA] and set(without.unread) == {"hints", "input"}
    other = only(row, mapped(columns=PROBLEM["columns"] | {"input": "uuid"}))
    assert reasons(other) == ["unread_input"], "two inputs, of which the settings name one"


def test_a_mapping_drops_no_system_prompt_unless_it_is_told_to() -> None:
    row = {"problem": Q, "solution": A, "system": "Be brief.", "kto_tag": False}
    assert reasons(only(row, mapped(**PROBLEM))) == ["system_prompt"]
    off = PROBLEM["columns"] | {"system": ""}
    assert reasons(only(row, mapped(columns=off))) == ["negative_label"]
    read = only(row, mapped(columns=off | {"label": ""}))
    assert read.records == [QA] and set(read.unread) == {"system", "kto_tag"}
    named = PROBLEM["columns"] | {"system": "persona"}
    assert reasons(only(row | {"persona": "A pirate."}, mapped(columns=named))) == ["system_prompt"]


def test_a_mapping_of_messages_roles_and_keys() -> None:
    turns = [{"speaker": "Asker", "said": Q}, {"speaker": "helper", "said": A}]
    rules = mapped(
        columns={"messages": "talk"}, role_key="speaker", text_key="said",
        roles={"user": ["asker"], "assistant": ["helper"]},
    )  # fmt: skip
    assert only({"talk": turns}, rules).records == [QA]
    assert reasons(only({"talk": turns, "context": "Of lakes."}, rules)) == ["unread_input"]
    same = mapped(role_key="speaker", text_key="said", roles={"user": ["asker"], "assistant": ["helper"]})
    assert only({"messages": turns}, same).records == [QA], "keys and roles serve the known forms too"


def test_a_mapped_preference() -> None:
    rules = mapped(columns={"prompt": "q", "chosen": "best", "rejected": "worst"})
    read = only({"q": Q, "best": A, "worst": "Orm."}, rules)
    assert read.records == [QA] and [other.response for other in read.alternatives] == ["Orm."]
    assert only({"q": chat(Q), "best": chat(A, roles=("assistant", "user")), "worst": None}, rules).records == [QA]


def test_a_column_can_hold_the_row() -> None:
    rules = mapped(unwrap="data")
    assert only({"data": {"instruction": Q, "input": "", "output": A}}, rules).records == [QA]
    assert reasons(only({"data": [Q, A]}, rules)) == ["wrong_type"]
    assert reasons(only({"data": {"instruction": Q, "output": A}, "label": False}, rules)) == ["negative_label"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"format": "mapped"}, "needs columns"),
        ({"columns": {"instruction": "a"}}, "no response"),
        ({"columns": {"response": "a"}}, "no instruction"),
        ({"columns": {"instruction": "a", "prompt": "b", "response": "c"}}, "same thing"),
        ({"columns": {"messages": "m", "input": "i"}}, "both messages and"),
        ({"format": "alpaca", "columns": {"instruction": "a", "response": "b"}}, 'format = "mapped"'),
        ({"columns": {"instructions": "a", "response": "b"}}, "instruction"),
        ({"format": "alpacca"}, "alpaca"),
    ],
)
def test_half_a_mapping_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Dataset(name="d", path="x.jsonl", **given)


def test_a_named_format_reads_that_and_nothing_else() -> None:
    both = {"instruction": Q, "output": A, "messages": chat("Hi", "Ho")}
    assert reasons(only(both, Rules())) == ["ambiguous_form"]
    assert only(both, Rules("alpaca")).records == [QA] and set(only(both, Rules("alpaca")).unread) == {"messages"}
    assert only(both, Rules("messages")).records == [Pair("Hi", "", "Ho")]
    assert reasons(only({"prompt": Q, "completion": A}, Rules("alpaca"))) != []
    assert only({"instruction": Q, "output": "B", "response": A}, Rules("instruction_response")).records == [QA]


def test_a_known_field_is_left_out_by_name_without_a_mapping() -> None:
    row = {"instruction": Q, "input": "x", "output": A, "label": "lakes"}
    assert reasons(only(row, mapped())) == ["unknown_label"]
    read = only(row, mapped(columns={"label": ""}))
    assert read.form == "alpaca" and read.records == [Pair(Q, "x", A)] and set(read.unread) == {"label"}
    read = only(row, mapped(columns={"label": "", "input": ""}, format="alpaca"))
    assert read.records == [QA] and set(read.unread) == {"label", "input"}


def test_every_form_can_be_named_in_the_settings() -> None:
    groups = {"auto", "alpaca", "sharegpt", "messages", "mapped"}
    assert set(get_args(Format)) == {form.name for form in FORMS} | groups | {FLAT}


def test_the_first_turn_is_taken_where_the_settings_say_so() -> None:
    row = {"messages": [*chat(Q, A, "And?"), said("assistant", "Orm.", tool_calls=[{"id": "x"}])]}
    assert only(row, Rules(multi_turn="first_turn")).records == [QA]
    assert reasons(only({"messages": [*chat(Q, A), said("system", "Hm.")]}, Rules(multi_turn="first_turn"))) == [
        "system_prompt"
    ]


def test_a_detail_names_the_role_the_field_and_the_two_readings() -> None:
    def detail(row: dict) -> str:
        return read_row(row, Rules()).rejects[0].detail

    assert detail({"messages": chat(Q, A, roles=("pirate", "parrot"))}) == "messages: pirate"
    assert detail({"instruction": Q, "output": A, "images": ["x"]}) == "images"
    assert detail({"instruction": Q, "output": A, "prompt": Q, "completion": "B"}) == "alpaca and prompt_completion"
    assert detail({"messages": [said("user", Q), said("assistant", A, weight=0)]}) == "messages[].weight"


def test_a_table_of_texts_has_labels_weights_and_ranks_too() -> None:
    row = {"instruction": Q, "output": A, "tools": "[]", "history": "", "images": "null"}
    for name, value, reason in (
        ("label", "True", None), ("label", "0", "negative_label"),
        ("weight", "1.0", None), ("weight", "0", "weight_zero"),
        ("rank", "0", None), ("rank", "2.0", "rank_above_0"), ("rank", "best", "unknown_label"),
        ("rank", 10**5000, "rank_above_0"),
        ("deleted", "false", None),
        ("deleted", "TRUE", "deleted"), ("ranking", [0, 1], "unknown_label"), ("toxic", 0.2, None),
    ):  # fmt: skip
        assert reasons(read_row({**row, name: value}, Rules())) == ([reason] if reason else []), (name, value)


def test_a_reading_that_comes_to_nothing_leaves_the_row_to_another() -> None:
    assert read_row({"instruction": Q, "output": A, "chosen": True}, Rules()).records == [QA]
    assert reasons(read_row({"chosen": True}, Rules())) == ["missing_instruction"]


def test_a_text_made_of_the_others_is_not_missed() -> None:
    row = {"instruction": Q, "output": A, "text": f"### Instruction: {Q} ### Response: {A}"}
    assert set(read_row(row, Rules()).unused) == {"text"}
    assert set(read_row(row | {"text": f"Below is a question. {Q}"}, Rules()).unread) == {"text"}
    assert reasons(read_row({"question": Q, "answer": A, "text": "Of lakes."}, Rules())) == ["unread_input"]


@pytest.mark.parametrize("reason", FIELDS)
def test_a_field_beside_the_texts_under_the_names_that_people_give_it(reason: str) -> None:
    for more in FIELDS[reason]:
        read = read_row({"instruction": Q, "output": A, **more}, Rules())
        assert reasons(read) == ([reason] if reason else []), more
        assert read.records == ([] if reason else [QA]) and not (read.records and read.unread), more


def test_a_name_that_may_stand_for_a_verdict_is_unread_where_it_does_not() -> None:
    for more in UNREAD:
        read = read_row({"instruction": Q, "output": A, **more}, Rules())
        assert read.records == [QA] and set(read.unread) == set(more), more


def test_what_a_person_leaves_out_by_name_rejects_no_more() -> None:
    row = {"question": Q, "answer": A, "instruction": "Answer.", "choices": ["x"], "is_correct": False}
    assert reasons(only(row, mapped())) == ["unread_input"]
    off = {"input": "", "label": ""}
    assert reasons(only(row, mapped(columns=off))) == ["unread_input"], "of the instruction nothing was said"
    for settings in ({"columns": off, "format": "question_answer"},
                  {"columns": off | {"instruction": "question", "response": "answer"}}):  # fmt: skip
        read = only(row, mapped(**settings))
        assert read.records == [QA] and set(read.unread) == {"instruction", "choices", "is_correct"}
    names = {"instruction": "instruction", "input": "dialogue", "response": "output"}
    read = only({"instruction": Q, "dialogue": "Hi", "output": A}, mapped(columns=names))
    assert read.records == [Pair(Q, "Hi", A)], "a name that also stands for a history was given to the input"


def answered(text: Any, **more: Any) -> list:
    return [said("user", Q), said("assistant", text, **more)]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([{"role": "system", "content": "", "tools": '[{"name": "f"}]'}, *answered(A)], "tools"),
        ([{"role": "system", "content": None, "functions": ["f"]}, *answered(A)], "tools"),
        ([{"role": "system", "content": "", "tools": "[]", "name": "x"}, *answered(A)], ""),
        ([{"role": "system", "content": [{"type": "text", "text": " "}]}, *answered(A)], ""),
        ([{"role": "system", "content": [{"type": "text", "text": "Hm."}]}, *answered(A)], "system_prompt"),
        ([{"role": "system", "content": [{"type": "image"}]}, *answered(A)], "system_prompt"),
        ([*answered(A), {"role": "system", "content": "Hm."}], "system_prompt"),
        (answered(A, loss=False), "weight_zero"),
        (answered(A, train_on_turn=False), "weight_zero"),
        ([said("user", Q, loss=False), said("assistant", A, loss=True)], ""),
        (answered({"type": "text", "text": A}), ""),
        (answered({"type": "refusal", "refusal": "No."}), "refusal"),
        (answered({"text": A}), "wrong_type"),
    ],
)
def test_odd_conversations(turns: list, reason: str) -> None:
    read = read_row({"messages": turns}, Rules())
    assert reasons(read) == ([reason] if reason else []) and read.records == ([] if reason else [QA])
    assert not (read.records and read.unread)


def test_a_number_is_a_text_in_a_message_too() -> None:
    read = read_row({"messages": answered(42)}, Rules())
    assert read.records == [Pair(Q, "", "42")] and read.numbers == 1


def test_messages_that_a_table_of_texts_holds_are_no_texts() -> None:
    asked, good, bad = chat(Q), chat(Q, A), chat(Q, "Orm.")
    for write, reason in ((json.dumps, ""), (str, "wrong_type")):
        for row in (
            {"prompt": Q, "chosen": write(good), "rejected": write(bad)},
            {"prompt": write(asked), "chosen": write(good[1:]), "rejected": write(bad[1:])},
            {"prompt": write(asked), "completion": write(good[1:]), "label": "True"},
            {"prompt": write(asked), "completion": A},
            {"instruction": Q, "instances": write([{"input": "", "output": A}])} if not reason else {"messages": "[x"},
        ):
            read = read_row(row, Rules())
            assert reasons(read) == ([reason] if reason else []) and read.records == ([] if reason else [QA]), row
            assert [other.response for other in read.alternatives] == (
                ["Orm."] if "rejected" in row and not reason else []
            )
    assert read_row({"instruction": "Write JSON.", "output": '[{"role": "user"}]'}, Rules()).records, "an answer may"


def test_an_answer_to_a_later_turn_is_no_alternative_to_the_first() -> None:
    first = Rules(multi_turn="first_turn")
    for row in (
        {"chosen": chat(Q, A, "And?", "Good."), "rejected": chat(Q, A, "And?", "Bad.")},
        {"input": {"messages": chat(Q, A, "And?")}, "preferred_output": chat("Good.", roles=("assistant", "user")),
         "non_preferred_output": chat("Bad.", roles=("assistant", "user"))},
    ):  # fmt: skip
        read = read_row(row, first)
        assert read.records == [QA] and not read.alternatives and len(read.unread) == 1
        assert reasons(read_row(row, Rules())) == ["multi_turn"]


def test_two_best_answers_and_a_tree_that_was_given_up() -> None:
    def tree(*ranks: Any, **more: Any) -> dict:
        replies = [{"role": "assistant", "text": f"{n}", "rank": rank} for n, rank in enumerate(ranks)]
        return {"prompt": {"role": "prompter", "text": Q, "replies": replies}, **more}

    assert reasons(read_row(tree(0, 0), Rules())) == ["no_best_answer"]
    assert reasons(read_row(tree(0, 1, tree_state="aborted_low_grade"), Rules())) == ["deleted"]
    assert read_row(tree(0, 1, tree_state="ready_for_export"), Rules()).records == [Pair(Q, "", "0")]


def test_blank_messages_leave_the_row_to_the_columns_beside_them() -> None:
    for turns in (chat("", ""), chat(Q, " "), chat(None, None)):  # type: ignore[arg-type]
        assert read_row({"messages": turns, "instruction": Q, "output": A}, Rules()).records == [QA]
    assert reasons(read_row({"messages": chat(Q, "")}, Rules())) == ["empty_response"]
    for turns in (chat(Q), chat(Q, A, "And?", "B"), ["x"]):  # what is there and wrong is no blank
        assert not read_row({"messages": turns, "instruction": Q, "output": A}, Rules()).records


def test_an_empty_list_written_as_text_is_no_reading_and_a_prompt_of_messages_must_be_theirs() -> None:
    for nothing in ("[]", " [ ] ", [], None):
        assert read_row({"instruction": Q, "output": A, "messages": nothing}, Rules()).records == [QA]
    assert read_row({"prompt": chat(Q), "messages": chat(Q, A)}, Rules()).records == [QA]
    assert reasons(read_row({"prompt": chat("Hm?"), "messages": chat(Q, A)}, Rules())) == ["ambiguous_form"]


def test_answers_judged_worse_that_are_several_or_the_same() -> None:
    read = read_row({"prompt": Q, "chosen": A, "rejected": ["Orm.", "", "Oz."]}, Rules())
    assert read.records == [QA] and [other.response for other in read.alternatives] == ["Orm.", "Oz."]
    read = read_row({"prompt": Q, "response": A, "Rejected": "Orm."}, Rules())
    assert [other.label for other in read.alternatives] == ["Rejected"]
    assert reasons(read_row({"prompt": Q, "chosen": A, "rejected": A + " "}, Rules())) == ["ambiguous_form"]
    row = {"prompt": Q, "completions": [A, A], "labels": [True, False]}
    assert reasons(read_row(row, Rules())) == ["ambiguous_form"]


@pytest.mark.parametrize(
    ("answer", "verdicts", "reason"),
    [
        ("Right.", [True, False], ""), ("Wrong.", [True, False], "negative_label"),
        ("Wrong.\n", [True, False], "negative_label"), ("Right.", [False, False], "negative_label"),
        ("right", [True, True], "ambiguous_form"), ("ight.", [True, False], ""), ("Right.", ["True", 0], ""),
        ("rong", [True, False], "negative_label"), ("Right.", [None, True], "unknown_label"),
    ],
)  # fmt: skip
def test_the_answer_of_a_set_must_be_among_those_that_were_verified(answer: str, verdicts: list, reason: str) -> None:
    row = {"generations": ["Right.", "Wrong."], "correctness_math_verify": verdicts, "messages": chat(Q, answer)}
    read = read_row(row, Rules())
    assert reasons(read) == ([reason] if reason else []) and len(read.records) == (not reason)


# -- anything whatever

NAMES = [
    *(name for form in FORMS for name in form.needs), *fields.OF_ROW, *fields.OF_MESSAGE, *sorted(fields.HARMLESS)[:9],
    "input", "context", "role", "from", "content", "value", "text", "type", "replies", "parent_id", "rejected", "data",
    "output", "response", "message_id", "review_result", "\ud800", "",
]  # fmt: skip
TEXTS = st.sampled_from(
    ["user", "assistant", "system", "human", "gpt", "tool", "prompter", Q, A, "", " ", "\ud800", "[1]"]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([4, 5000]).map(lambda digits: 10**digits)
    | st.floats()
    | TEXTS
    | st.text(max_size=4)
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=25,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXTS},
    optional=dict.fromkeys(sorted(fields.OF_MESSAGE), LEAVES),
)
BASE = st.sampled_from(
    [
        {"instruction": Q, "output": A},
        {"messages": chat(Q, A)},
        {"prompt": Q, "chosen": A, "rejected": "B"},
        {"instruction": Q, "instances": [{"input": "", "output": A}]},
        {"prompt": Q, "completions": [A, "B"], "labels": [True, False]},
        {"input": {"messages": chat(Q)}, "preferred_output": chat(A, roles=("assistant", "user"))},
        {"problem": Q, "generations": [A], "correctness_math_verify": [True], "messages": chat(Q, A)},
        {"prompt": {"text": Q, "role": "prompter", "replies": [{"text": A, "role": "assistant", "rank": 0}]}},
    ]
)
RULES = st.sampled_from(
    [
        Rules(),
        Rules(multi_turn="first_turn"),
        Rules("alpaca"),
        mapped(unwrap="data"),
        mapped(columns={"instruction": "prompt", "response": "value", "input": "", "rejected": "rejected"}),
        mapped(columns={"messages": "messages"}, role_key="from"),
    ]
)


@examples(deadline=None, max_examples=300)
@given(st.lists(JSON, max_size=4), RULES)
def test_no_row_of_any_json_ends_a_run(rows: list[Any], rules: Rules) -> None:
    found = list(read_rows(enumerate(rows), rules))
    assert len(found) == len(rows)
    for _, row, read in found:
        assert all(why.reason in REASONS for why in read.rejects)
        for pair in read.records:
            assert all(isinstance(text, str) for text in pair) and pair.instruction.strip() and pair.response.strip()
            "".join(pair).encode()
        for text in [*read.unread, *(why.detail for why in read.rejects), as_json(row)]:
            text.encode()


def test_rows_of_great_depth_and_numbers_of_thousands_of_digits() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    row = {"instruction": Q, "output": deep, "n": 10**5000, ("a", 1): {"b": {1, 2}}}
    read = read_row(row, Rules())
    assert reasons(read) == ["wrong_type"]
    shown = json.loads(as_json(row))
    assert shown["n"] == "(an integer of about 5,000 digits)" and shown["instruction"] == Q
    assert reasons(read_row({"instruction": Q, "output": 10**5000}, Rules())) == ["wrong_type"]
    tree: Any = {"text": "x", "role": "prompter", "replies": []}
    for _ in range(5000):
        tree = {"text": "x", "role": "prompter", "replies": [tree]}
    assert read_row({"prompt": tree}, Rules()).rejects


def changes_meaning(name: str, value: Any) -> bool:
    """Written apart from the program: what no accepted row may have, of the plain kinds."""
    if not is_filled(value) or (isinstance(value, str) and value.strip().lower() in ("[]", "{}", "null", "none")):
        return False
    if name in ("system", "system_prompt", "history", "tools", "functions", "tool_calls", "images", "videos", "audios",
                "function_call", "chat_template_kwargs", "reasoning_content", "thinking"):  # fmt: skip
        return bool(value)
    if name in ("label", "kto_tag", "weight", "loss_weight"):
        return value in (False, 0) if isinstance(value, bool | int | float) else False
    if name == "rank":
        return isinstance(value, int | float) and value > 0
    return name in ("deleted", "toxic") and value is True


@examples(deadline=None, max_examples=300)
@given(BASE, st.dictionaries(st.sampled_from(sorted(fields.OF_ROW)), LEAVES | st.lists(LEAVES, max_size=2), max_size=3))
def test_no_accepted_row_has_dropped_a_field_that_changes_its_meaning(base: dict, more: dict) -> None:
    row = {**more, **base}
    read = read_row(row, Rules())
    for name, value in row.items():
        if name not in base and changes_meaning(name, value):
            assert not read.records, (name, read)
    if not any(is_filled(value) for value in more.values()):
        assert read.records


@examples(deadline=None, max_examples=200)
@given(st.lists(MESSAGE, min_size=1, max_size=4), st.sampled_from(["reject", "first_turn"]))
def test_no_accepted_conversation_has_dropped_a_field_of_its_answer(turns: list[dict], multi_turn: str) -> None:
    read = read_row({"messages": turns}, Rules(multi_turn=multi_turn))
    if read.records:
        spoken = [turn for turn in turns if turn["role"] != "system"]
        assert all(not is_filled(turn["content"]) for turn in turns if turn["role"] == "system")
        assert not any(changes_meaning(name, value) for name, value in spoken[1].items())
        assert len(spoken) == 2 or multi_turn == "first_turn"


def test_the_page_about_data_names_every_form_and_reason() -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    assert [name for name, text in REASONS.items() if f"| `{name}` | {text} |" not in page] == []
    assert [form.name for form in FORMS if f"`{form.name}`" not in page] == []
