"""Readers of rows whose instruction and response are columns: one pair, a list of instances, or mapped columns.

`meaning.py` chooses the form of a row; conversations are read in `turns.py`.
"""

from collections.abc import Iterable
from typing import Any

from srt_assets.core.records.files.json_types import type_of
from srt_assets.core.records.forms import checks, fields
from srt_assets.core.records.forms.result import Alternative, Pair, Read, Reject, as_text, checked, is_filled, named
from srt_assets.core.records.forms.rules import UNDER_OWN_NAME, Rules
from srt_assets.core.records.forms.turns import answer_of, answers_of, holds_turns, messages_of, pair_of

Row = dict[Any, Any]
# Columns that hold lists of messages in some data; in a CSV file these become texts.
_MAY_BE_TURNS = frozenset({"prompt", "completion"})


def pair(row: Row, instruction: str, inputs: tuple[str, ...], response: str, read: Read) -> Pair | Reject:
    """The pair from text columns. The input may be in any of several columns, or missing."""
    question = as_text(row.get(instruction), read, instruction)
    answer = as_text(row.get(response), read, response)
    given = input_of(row, inputs, read)
    for name in (instruction, response):
        if name in _MAY_BE_TURNS and isinstance(row.get(name), str) and holds_turns(row[name]):
            return Reject("wrong_type", f"{name} holds messages, written as a text")
    for text in (question, answer, given):
        if isinstance(text, Reject):
            return text
    if question is None or answer is None:
        return Reject("missing_instruction" if question is None else "missing_response")
    return Pair(question, given or "", answer)  # type: ignore[arg-type]


def input_of(row: Row, names: Iterable[str], read: Read) -> str | Reject:
    """The input, unchanged; '' if there is none. Two columns with different inputs are rejected as `ambiguous_form`."""
    found, where = "", ""
    for name in names:
        text = as_text(row.get(name), read, name) if name in row else None
        if isinstance(text, Reject):
            return text
        if text and where and text != found and not (text.isspace() or found.isspace()):
            return Reject("ambiguous_form", f"{where} and {name}")
        if text and (not where or found.isspace()):
            found, where = text, name
    return found


def instances(row: Row, rules: Rules, read: Read) -> None:
    """Self-instruct: one instruction, and one record for each of its instances."""
    question = as_text(row.get("instruction"), read, "instruction")
    if isinstance(question, Reject):
        read.rejects.append(question)
        return
    found_in = messages_of(row["instances"], "instances")
    if isinstance(found_in, Reject):
        read.rejects.append(found_in)
        return
    for number, instance in enumerate(found_in):
        where = f"instances[{number}]"
        found: Pair | Reject
        if not isinstance(instance, dict):
            found = Reject("wrong_type", f"{where} is {type_of(instance)}")
        else:
            found = pair({"instruction": question, **_only(instance)}, "instruction", ("input",), "output", read)
            for name, value in instance.items():
                if name not in ("input", "output") and not isinstance(found, Reject):
                    found = fields.account(read, name, value, place="instances[].") or found
        found = checked(found) if isinstance(found, Pair) else found
        if isinstance(found, Pair):
            read.records.append(found)
        else:
            read.rejects.append(Reject(found.reason, found.detail or where))


def _only(instance: Row) -> Row:
    return {name: instance.get(name) for name in ("input", "output")}


def mapped(row: Row, rules: Rules, read: Read) -> None:
    """The columns that the settings name. `input` and the like keep their own names unless others are set."""
    names = rules.columns
    for role, own in UNDER_OWN_NAME.items():
        if role not in names and role != "input":
            read.taken.update(own)

    def column(*roles: str) -> tuple[str, Any]:
        name = next((names[role] for role in roles if names.get(role)), "")
        return name, row.get(name)

    def beside(role: str) -> list[tuple[str, Any]]:
        if role in names:
            own: tuple[str, ...] = (names[role],)
        else:  # a name may have been given to something else
            own = tuple(name for name in UNDER_OWN_NAME[role] if name not in names.values())
        return [(name, row[name]) for name in own if name and name in row]

    for role, check in (("system", fields.OF_ROW["system"]), ("history", fields.OF_ROW["history"])):
        for name, value in beside(role):
            if is_filled(value) and (why := check(name, value)):
                read.rejects.append(why)
                return
    found = _texts(row, rules, read, column("messages"), column("instruction", "prompt"),
                   column("response", "completion", "chosen"), [name for name, _ in beside("input")])  # fmt: skip
    if isinstance(found, Pair):
        found = checked(found)
    if isinstance(found, Reject):
        read.rejects.append(found)
        return
    for name, value in beside("label"):
        if is_filled(value) and (why := checks.label(name, value)):
            read.rejects.append(why)
            return
    for name, value in beside("rejected"):
        if is_filled(value):
            others = answers_of(value, rules, Read(), name)
            if isinstance(others, Reject):
                read.rejects.append(others)
                return
            read.alternatives += [Alternative("rejected", named(name), other) for other in others]
    read.records.append(found)


def _texts(
    row: Row,
    rules: Rules,
    read: Read,
    messages: tuple[str, Any],
    asked: tuple[str, Any],
    answered: tuple[str, Any],
    inputs: list[str],
) -> Pair | Reject:
    if messages[0]:
        if not is_filled(messages[1]):
            return Reject("missing_instruction", named(messages[0]))
        turns = messages_of(messages[1], named(messages[0]))
        if isinstance(turns, Reject):
            return turns
        return _with_answer(turns, answered, rules, read, messages[0])
    if holds_turns(asked[1]):
        turns = messages_of(asked[1], named(asked[0]))
        return turns if isinstance(turns, Reject) else _with_answer(turns, answered, rules, read, asked[0])
    if holds_turns(answered[1]) and answered[1]:
        text = answer_of(answered[1], rules, read, named(answered[0]))
        if isinstance(text, Reject):
            return text
        row = {**row, answered[0]: text}
    read.taken.update(inputs)
    return pair(row, asked[0], tuple(inputs), answered[0], read)


def _with_answer(turns: list[Any], answered: tuple[str, Any], rules: Rules, read: Read, where: str) -> Pair | Reject:
    """A conversation whose last answer may be in a column of its own."""
    if not answered[0]:
        return pair_of(turns, rules, read, where)
    if not is_filled(answered[1]):
        return Reject("missing_response", named(answered[0]))
    text = answer_of(answered[1], rules, read, named(answered[0]))
    if isinstance(text, Reject):
        return text
    return pair_of([*turns, {rules.role_keys[0]: "assistant", rules.text_keys[0]: text}], rules, read, where)
