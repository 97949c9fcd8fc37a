"""The result of reading a row: pairs, answers judged worse, rejects with a reason, and fields that were not read.

Here are only the types and reasons. `meaning.py` and the modules beside it decide how a row is read.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from srt_assets.core.records.files.json_types import type_of
from srt_assets.core.records.files.unreadable import REASONS as UNREADABLE

# Values of `input` that mean "no input". They are kept, because changing them would change the record.
SENTINEL_INPUTS = frozenset(
    {"<noinput>", "<no input>", "<no input>.", "<no_input>", "noinput", "no input", "n/a", "none"}
)

# Why a row, or one answer of it, is rejected, and what a person can do about it.
REASONS: dict[str, str] = {
    "not_an_object": "the row is not an object: write objects with named fields; a file that is one list ends in .json",
    **UNREADABLE,
    "unknown_form": "no known form has these fields: name the instruction and the response with datasets.columns",
    "no_structure": "the row has a single text: split it into an instruction and a response",
    "ambiguous_form": "the row can be read in two ways with different texts: set datasets.format or datasets.columns",
    "missing_instruction": "the row has no instruction: add it, or name its field with datasets.columns",
    "missing_response": "the row has no response: add it, or name its field with datasets.columns",
    "wrong_type": "a field has a type that its form cannot use: correct it, or name another with datasets.columns",
    "empty_instruction": "the instruction is blank: fill it in, or delete the row",
    "empty_response": "the response is blank: fill it in, or delete the row",
    "invalid_text": "a text has half of a surrogate pair, which UTF-8 cannot store: correct the text",
    "unknown_role": "a message has an unknown role: name it with datasets.roles",
    "role_order": "user and assistant do not take turns: correct the order of the messages",
    "system_prompt": "a system prompt is not supported: delete it if the answer does not depend on it",
    "has_history": "a field with earlier turns is not supported: delete it if the answer does not depend on it",
    "no_reply": "the conversation ends without an answer: add one, or delete the row",
    "multi_turn": 'the conversation has several turns: set datasets.multi_turn = "first_turn" to use the first',
    "tools": "tools are not supported: delete them if the answer does not depend on them",
    "tool_calls": "the row has a tool call or its result, which the teacher cannot rewrite: delete the row",
    "multimodal": "the row has images, audio, video or files: delete them if the texts are complete without them",
    "template_kwargs": "the row has settings for a chat template, which are not supported: delete them",
    "thoughts": "a field with thoughts is not supported: delete it to use the answer without them",
    "refusal": "the answer is marked as a refusal: replace it, or delete the row",
    "unknown_part": "a message has a part of an unknown type: convert it to a part of type text",
    "negative_label": "the only answer is labelled bad: add a good one, or correct the label",
    "unknown_label": "a label has an unknown value and may mean that the answer is bad: write true or false",
    "several_good_answers": "several answers are labelled good, or they are steps of one: keep one answer per row",
    "no_best_answer": "several answers have no rank 0, or one of them has no rank: rank them all, the best as 0",
    "unread_input": "a field has an input that this form does not read: name the field with datasets.columns",
    "rank_above_0": "the answer is not ranked best: correct its rank to 0 if it is the best",
    "weight_zero": "the weight 0 excludes the answer from training: correct the weight to 1 to use it",
    "weighted": "the answer has a weight other than 0 and 1, which is not supported: set it to 0 or 1",
    "toxic": "the row is marked as toxic: correct the mark if it is wrong",
    "deleted": "the row is marked as deleted, or its tree as given up: correct the mark if it is wrong",
    "broken_tree": "the message that this one answers is missing: put all rows of a tree next to each other",
    "duplicate": "an earlier row is the same record, which is kept once: nothing needs to be done",
}
# If one form rejects a row for one of these reasons, another form may still fit.
_NOT_A_READING = frozenset(
    {"missing_instruction", "missing_response", "empty_instruction", "empty_response", "no_reply", "wrong_type"}
)


class Pair(NamedTuple):
    instruction: str
    input: str
    response: str


class Alternative(NamedTuple):
    """An answer to the row's instruction that was judged worse. `kind`: the kind of judgement; `label`: the field
    or value that says so.
    """

    kind: str
    label: str
    response: str
    # The index of the row it is in, if that is another row.
    row: int | None = None


class Reject(NamedTuple):
    """`reason` is a key of REASONS; `detail` names for example the field, the role or the two forms."""

    reason: str
    detail: str = ""

    @property
    def is_no_reading(self) -> bool:
        return self.reason in _NOT_A_READING


@dataclass(slots=True)
class Read:
    """The result of one row.

    `alternatives` belong to the first record. `unread`: unknown fields by name, with the type of their value. `unused`:
    the same for known fields that do not change what the answer means. `taken`: fields that a reader looked at.
    `numbers`: how many numbers and booleans became text.
    """

    form: str = ""
    records: list[Pair] = field(default_factory=list)
    alternatives: list[Alternative] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    numbers: int = 0

    def reject(self, reason: str, detail: str = "") -> "Read":
        """Rejects the whole row for this reason, without records and alternatives."""
        self.records, self.alternatives, self.rejects = [], [], [Reject(reason, detail)]
        return self


def is_filled(value: Any) -> bool:
    """False for null, NaN, blank text, and for lists and objects that are empty or hold only nulls."""
    if isinstance(value, str):
        return bool(value) and not value.isspace()
    if value is None:
        return False
    if isinstance(value, float):
        return not math.isnan(value)
    if isinstance(value, list | tuple):
        return any(item is not None and item != "" for item in value)
    if isinstance(value, dict):
        return any(item is not None for item in value.values())
    return True


def as_text(value: Any, read: Read, where: str) -> str | Reject | None:
    """A column's value as text; None if there is none. Numbers and booleans become text as JSON writes them."""
    if isinstance(value, str):
        return value
    if not is_filled(value):
        return None
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, int) and value.bit_length() < 10_000:  # Python writes no more than 4,300 digits
        text = str(value)
    elif isinstance(value, float) and math.isfinite(value):
        text = repr(value)
    else:
        return Reject("wrong_type", f"{where} is {type_of(value)}")
    read.numbers += 1
    return text


def named(value: Any) -> str:
    """A name or short value from a row for a message or table: valid UTF-8, at most 60 characters."""
    text = value if isinstance(value, str) else type_of(value)
    text = text.encode("utf-8", "backslashreplace").decode() if not text.isascii() else text
    return text[:59] + "…" if len(text) > 60 else text


def checked(pair: Pair) -> Pair | Reject:
    """The pair; a Reject if instruction or response is blank, or if a text cannot be stored as UTF-8."""
    if not pair.instruction or pair.instruction.isspace():
        return Reject("empty_instruction")
    if not pair.response or pair.response.isspace():
        return Reject("empty_response")
    return pair if all(map(is_valid, pair)) else Reject("invalid_text")


def is_valid(text: str) -> bool:
    """False for a lone surrogate: neither Parquet nor a tokenizer can hold it."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
