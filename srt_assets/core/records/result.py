"""What a row was read as: pairs, answers judged worse, rejects with a reason; and what of the row nobody read.

How a row is read is decided in `meaning.py` and the readers beside it; here are only the words they share.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from srt_assets.core.records.unreadable import REASONS as UNREADABLE
from srt_assets.core.records.unreadable import NotText

# Words that people write into `input` to say that there is none. They stay: changing them would change the record.
SENTINEL_INPUTS = frozenset(
    {"<noinput>", "<no input>", "<no input>.", "<no_input>", "noinput", "no input", "n/a", "none"}
)

# Why a row, or one answer of it, is no record; and what a person may do about it.
REASONS: dict[str, str] = {
    "not_an_object": "a row must be an object with named fields; a file that is one list has the ending .json",
    **UNREADABLE,
    "unknown_form": "no form that is known has these fields: name them with datasets.columns",
    "no_structure": "a text alone does not say what is instruction and what is response",
    "ambiguous_form": "two readings of the row contradict each other: datasets.format or datasets.columns decides",
    "missing_instruction": "there is no instruction",
    "missing_response": "there is no response",
    "wrong_type": "a field is no text, or not the list it should be",
    "empty_instruction": "the instruction is blank",
    "empty_response": "the response is blank",
    "invalid_text": "half of a surrogate pair, which no file of UTF-8 can hold",
    "unknown_role": "a role that is not known: name it with datasets.roles",
    "role_order": "user and assistant do not take turns",
    "system_prompt": "the answer was given under a system prompt, which is not supported yet",
    "has_history": "earlier turns stand in a field of their own, which is not supported yet",
    "no_reply": "the conversation ends without an answer",
    "multi_turn": 'several turns: datasets.multi_turn = "first_turn" takes the first',
    "tools": "the answer was given with tools at hand",
    "tool_calls": "a tool call or its result is no answer to rewrite",
    "multimodal": "images, audio, video or files belong to it",
    "template_kwargs": "the row has settings for a chat template, which are not supported",
    "thoughts": "thoughts stand in a field of their own, which is not supported yet",
    "refusal": "the answer is marked as a refusal",
    "unknown_part": "a part of the content is of a type that is not known",
    "negative_label": "the only answer is labelled bad",
    "unknown_label": "a label that may call the answer bad, in words that are not known",
    "several_good_answers": "several answers are labelled good; or they are steps of one",
    "no_best_answer": "several answers without one ranked best, or an answer without a rank beside a best one",
    "unread_input": "an input stands in a field that this form does not read: name it with datasets.columns",
    "rank_above_0": "the answer is ranked below another",
    "weight_zero": "the answer is not to be learnt: its weight is 0",
    "weighted": "the answer has a weight other than 0 and 1",
    "toxic": "the row is marked as toxic",
    "deleted": "the row is marked as deleted, or its tree as given up",
    "broken_tree": "the message that this one answers is not among the neighbours of its tree",
    "duplicate": "an earlier row is the same record",
}
# Where one reading of a row comes to nothing for one of these, another reading may still stand.
_NOT_A_READING = frozenset(
    {"missing_instruction", "missing_response", "empty_instruction", "empty_response", "no_reply", "wrong_type"}
)


class Pair(NamedTuple):
    instruction: str
    input: str
    response: str


class Alternative(NamedTuple):
    """An answer to the row's instruction that somebody judged worse. `kind`: how; `label`: in whose words."""

    kind: str
    label: str
    response: str
    # The row it stands in, where that is another one.
    row: int | None = None


class Reject(NamedTuple):
    """`reason` is one of REASONS; `detail` names the field, the role, the two readings."""

    reason: str
    detail: str = ""

    @property
    def is_no_reading(self) -> bool:
        return self.reason in _NOT_A_READING


@dataclass(slots=True)
class Read:
    """What became of one row.

    `alternatives` belong to the first record. `unread`: fields that nobody knows, by name, with the type of what is in
    them. `unused`: known fields that say nothing about the answer. `taken`: fields that a reader looked at.
    `numbers`: numbers or booleans taken as text.
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
        """The same row, with this reject in the place of whatever it would have given."""
        self.records, self.alternatives, self.rejects = [], [], [Reject(reason, detail)]
        return self


def is_filled(value: Any) -> bool:
    """False for what means that there is nothing: null, NaN, a blank text, an empty list or one of nulls."""
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


def type_of(value: Any) -> str:
    """The JSON type of a value, as people call it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    names: dict[type, str] = {
        str: "text",
        list: "list",
        tuple: "list",
        dict: "object",
        bytes: "bytes",
        NotText: "bytes",
    }
    return names.get(type(value), type(value).__name__)


def named(value: Any) -> str:
    """A name or short value from a row, fit for a message and a table: one line, at most 60 characters."""
    text = value if isinstance(value, str) else type_of(value)
    text = text.encode("utf-8", "backslashreplace").decode() if not text.isascii() else text
    return text[:59] + "…" if len(text) > 60 else text


def checked(pair: Pair) -> Pair | Reject:
    """The pair, unless one of its texts is blank or can be stored nowhere."""
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
