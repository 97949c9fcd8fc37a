"""The table of forms: which fields a row of each form has, and which function reads it.

The readers are in `columns.py`, `turns.py`, `judged.py` and `trees.py`; `meaning.py` chooses the form of a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from srt_assets.core.records.forms import columns, judged, trees
from srt_assets.core.records.forms.columns import Row
from srt_assets.core.records.forms.result import Pair, Read, Reject, checked, is_filled
from srt_assets.core.records.forms.rules import Rules
from srt_assets.core.records.forms.turns import holds_turns, listed, looks_like_turns, messages_of, pair_of

Reader = Callable[[Row, Rules, Read], None]


@dataclass(frozen=True)
class Form:
    """A form of rows. `needs`: fields that must be filled. `fits`: a further condition. `named`: the value of
    `datasets.format` that includes it. The reader adds the other fields that it looked at to `Read.taken`.
    """

    name: str
    needs: tuple[str, ...]
    reader: Reader
    named: str = ""
    fits: Callable[[Row], bool] | None = None
    # `needs` are an instruction and a response.
    is_columns: bool = False


def _keep(read: Read, found: Pair | Reject) -> None:
    if isinstance(found, Pair):
        found = checked(found)
    if isinstance(found, Pair):
        read.records.append(found)
    else:
        read.rejects.append(found)


def _columns(name: str, instruction: str, response: str, *inputs: str, named: str = "") -> Form:
    inputs = ("input", "context", *inputs)

    def reader(row: Row, rules: Rules, read: Read) -> None:
        names = inputs if not rules.off else tuple(name for name in inputs if name not in rules.off)
        read.taken.update(names)
        _keep(read, columns.pair(row, instruction, names, response, read))

    return Form(name, (instruction, response), reader, named, is_columns=True)


def _turns(key: str, named: str) -> Form:
    def reader(row: Row, rules: Rules, read: Read) -> None:
        turns = messages_of(row[key], key)
        found = turns if isinstance(turns, Reject) else pair_of(turns, rules, read, key)
        asked = row.get("prompt")
        if isinstance(found, Pair) and isinstance(asked, str | list) and is_filled(asked):
            read.taken.add("prompt")
            is_same = asked.strip() == found.instruction.strip() if isinstance(asked, str) else asked == turns[:-1]
            if not is_same:
                found = Reject("ambiguous_form", f"prompt and {key}")
        _keep(read, found)

    return Form(key, (key,), reader, named, lambda row: looks_like_turns(row[key]))


def _verdicts(answers: str, verdicts: str) -> Form:
    def are_lists(row: Row) -> bool:
        return isinstance(listed(row[answers]), list) and isinstance(listed(row[verdicts]), list)

    return Form(f"{answers}_{verdicts}", (answers, verdicts), judged.with_verdicts, fits=are_lists)


def _texts_in_turn(row: Row, rules: Rules, read: Read) -> None:
    """UltraChat's older form: a list of texts, the user's and the assistant's alternating."""
    keys = rules.role_keys[0], rules.text_keys[0]
    turns = [dict(zip(keys, (("user", "assistant")[n % 2], text), strict=True)) for n, text in enumerate(row["data"])]
    _keep(read, pair_of(turns, rules, read, "data"))


def _prompt_of_messages(row: Row, rules: Rules, read: Read) -> None:
    """TRL's conversational prompt and completion: two lists of messages that follow each other."""
    turns: list[Any] = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        given = row[name]
        if not holds_turns(given):
            given = [{rules.role_keys[0]: role, rules.text_keys[0]: given}]
        found = messages_of(given, name)
        if isinstance(found, Reject):
            return _keep(read, found)
        turns += found
    return _keep(read, pair_of(turns, rules, read, "prompt"))


def _has_text_list(row: Row) -> bool:
    return isinstance(row["data"], list) and all(isinstance(text, str) for text in row["data"])


# The first form that fits is the row's form. Others that fit must give the same texts.
FORMS: tuple[Form, ...] = (
    Form("oasst_tree", ("prompt",), trees.whole, fits=lambda row: trees.is_node(row["prompt"])),
    Form(
        "openai_preference",
        ("input", "preferred_output"),
        judged.openai_preference,
        fits=lambda row: isinstance(row["input"], dict) and is_filled(row["input"].get("messages")),
    ),
    *(_verdicts(answers, verdicts) for answers, verdicts in judged.VERDICTS),
    Form("preference", ("chosen",), judged.preference),
    _turns("messages", "messages"),
    _turns("conversations", "sharegpt"),
    _turns("conversation", "messages"),
    Form("texts_in_turn", ("data",), _texts_in_turn, fits=_has_text_list),
    Form(
        "prompt_messages",
        ("prompt", "completion"),
        _prompt_of_messages,
        fits=lambda row: holds_turns(row["prompt"]) or isinstance(row["completion"], list | dict),
    ),
    Form(
        "self_instruct",
        ("instruction", "instances"),
        columns.instances,
        fits=lambda row: looks_like_turns(row["instances"]),
    ),
    _columns("alpaca", "instruction", "output", named="alpaca"),
    _columns("instruction_response", "instruction", "response", named="alpaca"),
    _columns("upper_case", "INSTRUCTION", "RESPONSE"),
    _columns("prompt_completion", "prompt", "completion"),
    _columns("prompt_response", "prompt", "response"),
    _columns("prompt_generation", "prompt", "generation"),
    _columns("question_answer", "question", "answer", "article"),
    _columns("question_response", "question", "response"),
    _columns("flan", "inputs", "targets"),
    _columns("message_pair", "message_1", "message_2"),
)
