"""Readers of rows with judged answers: preferences, lists of answers with labels, verified generations.

A label in a field of its own is checked in `fields.py`, ranks in trees in `trees.py`.
"""

from dataclasses import replace
from typing import Any

from srt_assets.core.records.files.json_types import type_of
from srt_assets.core.records.forms import checks, fields
from srt_assets.core.records.forms.columns import Row, input_of
from srt_assets.core.records.forms.result import Alternative, Pair, Read, Reject, as_text, checked, is_filled, named
from srt_assets.core.records.forms.rules import Rules
from srt_assets.core.records.forms.turns import (
    answer_of,
    answers_of,
    holds_turns,
    listed,
    looks_like_turns,
    messages_of,
    pair_of,
)

# Fields that may hold the question of a judged answer, the likeliest first.
QUESTIONS = ("prompt", "messages", "conversations", "conversation", "instruction", "question", "problem")
# A list of answers, and the list of verdicts on them.
VERDICTS = (
    ("completions", "labels"),
    ("generations", "correctness_math_verify"),
    ("generations", "correctness_llama"),
)
# The kind of an alternative, by the field it is in.
_KINDS = {"rejected": "rejected", "non_preferred_output": "non_preferred"}


def preference(row: Row, rules: Rules, read: Read) -> None:
    """`chosen` and `rejected`: texts, messages, or whole conversations that include the question."""
    read.taken.add("rejected")
    _judged(row, rules, read, row["chosen"], row.get("rejected"), "chosen", "rejected")


def openai_preference(row: Row, rules: Rules, read: Read) -> None:
    """OpenAI's `input`, `preferred_output`, `non_preferred_output`."""
    asked = row["input"]
    read.taken.add("non_preferred_output")
    for name, value in asked.items():
        if name != "messages" and (why := fields.account(read, name, value, place="input.")):
            read.rejects.append(why)
            return
    question = {"messages": asked["messages"]}
    good, bad = row["preferred_output"], row.get("non_preferred_output")
    _judged(question, rules, read, good, bad, "preferred_output", "non_preferred_output")


def _judged(row: Row, rules: Rules, read: Read, good: Any, bad: Any, good_name: str, bad_name: str) -> None:
    found = _question_and(row, good, good_name, replace(rules, multi_turn="reject"), read)
    of_later_turn = isinstance(found, Reject) and found.reason == "multi_turn" and rules.multi_turn == "first_turn"
    if of_later_turn:
        found = _question_and(row, good, good_name, rules, read)
    if isinstance(found, Pair):
        found = checked(found)
    if isinstance(found, Reject):
        read.rejects.append(found)
        return
    if is_filled(bad):
        if of_later_turn:  # it answers a later turn, not the first
            read.unread[bad_name] = type_of(bad)
        else:
            others = _rejected(bad, bad_name, found, rules)
            if isinstance(others, Reject):
                read.rejects.append(others)
                return
            read.alternatives += [Alternative(_KINDS[bad_name], bad_name, text) for text in others]
    read.records.append(found)


def _question_and(row: Row, answer: Any, name: str, rules: Rules, read: Read) -> Pair | Reject:
    """The pair of an answer and its question, which is part of the answer or in another column."""
    turns: list[Any] = []
    if holds_turns(answer):
        found = messages_of(answer, name)
        if isinstance(found, Reject):
            return found
        if len(found) > 1:
            whole = pair_of(found, rules, read, name)
            asked = row.get("prompt")
            if isinstance(whole, Pair) and isinstance(asked, str) and is_filled(asked):
                read.taken.add("prompt")
                if asked.strip() != whole.instruction.strip():
                    return Reject("ambiguous_form", f"prompt and {name}")
            return whole
        turns = found
    where = next((key for key in QUESTIONS if is_filled(row.get(key))), "")
    if not where:
        return Reject("missing_instruction", f"{name} without a question")
    asked = row[where]
    read.taken.add(where)
    if where in ("messages", "conversations", "conversation") or holds_turns(asked):
        before = messages_of(asked, where)
        if isinstance(before, Reject):
            return before
        if isinstance(pair_of(before, rules, Read(), where), Pair):  # it ends with an answer, which is left out
            before = before[:-1]
        last = turns or [{rules.role_keys[0]: "assistant", rules.text_keys[0]: answer}]
        return pair_of([*before, *last], rules, read, where)
    question = as_text(asked, read, where)
    given = input_of(row, ("input", "context"), read)
    read.taken.update(("input", "context"))
    text = answer_of(answer, rules, read, name)
    for part in (question, given, text):
        if isinstance(part, Reject):
            return part
    return Pair(question or "", given, text)  # type: ignore[arg-type]


def _rejected(bad: Any, name: str, good: Pair, rules: Rules) -> list[str] | Reject:
    """The texts of the answers judged worse. If they contain the question too, it must be the same question."""
    if holds_turns(bad):
        turns = messages_of(bad, name)
        if isinstance(turns, list) and len(turns) > 1 and isinstance(turns[0], dict):
            other = pair_of(turns, rules, Read(), name)
            if isinstance(other, Reject):
                return other
            if other.instruction != good.instruction:
                return Reject("ambiguous_form", f"the questions of {name} and of the answer preferred")
    # Other fields of these answers do not matter, because they are never trained on.
    return answers_of(bad, rules, Read(), name)


def with_verdicts(row: Row, rules: Rules, read: Read) -> None:
    """A list of answers with a list of verdicts. The good answer is the record; bad ones are alternatives."""
    answers_name, verdicts_name = next((a, v) for a, v in VERDICTS if is_filled(row.get(a)) and is_filled(row.get(v)))
    answers, verdicts = listed(row[answers_name]), listed(row[verdicts_name])
    if not (isinstance(answers, list) and isinstance(verdicts, list) and len(answers) == len(verdicts)):
        read.rejects.append(
            Reject("wrong_type", f"{answers_name} and {verdicts_name} are not lists of the same length")
        )
        return
    good: list[str] = []
    bad: list[str] = []
    for answer, said in zip(answers, verdicts, strict=True):
        verdict = checks.verdict(said)
        text = answer_of(answer, rules, Read(), answers_name) if answer is not None else None
        if not isinstance(text, str) or verdict is None:
            why = text if isinstance(text, Reject) else Reject("unknown_label", f"{verdicts_name}: {type_of(said)}")
            read.rejects.append(why)
            return
        (good if verdict else bad).append(text)
    found = _best(row, good, bad, answers_name, verdicts_name, rules, read)
    if isinstance(found, Pair):
        found = checked(found)
    if isinstance(found, Reject):
        read.rejects.append(found)
        return
    read.alternatives += [Alternative(answers_name, f"{verdicts_name}: false", text) for text in bad]
    if rest := [text for text in good if found.response.strip() not in text]:
        read.unread[f"{answers_name} (good ones)"] = f"{len(rest)} texts"
    read.records.append(found)


def _best(
    row: Row, good: list[str], bad: list[str], answers: str, verdicts: str, rules: Rules, read: Read
) -> Pair | Reject:
    talk = next((n for n in ("messages", "conversations") if looks_like_turns(row.get(n)) and is_filled(row[n])), "")
    if talk and answers == "generations":  # the dataset's own choice among the generations
        turns = messages_of(row[talk], talk)
        read.taken.update((talk, "problem"))
        found = turns if isinstance(turns, Reject) else pair_of(turns, rules, read, talk)
        return _judged_as(found, good, bad, f"{answers} and {talk}", verdicts) if isinstance(found, Pair) else found
    if not good:
        return Reject("negative_label", named(verdicts))
    if len(good) > 1 and answers == "completions":  # other datasets store the steps of one answer there
        return Reject("several_good_answers", f"{len(good)} of {len(good) + len(bad)} {answers}")
    return _question_and(row, good[0], answers, rules, read)


def _judged_as(found: Pair, good: list[str], bad: list[str], names: str, verdicts: str) -> Pair | Reject:
    """The pair, if its answer is one of the good ones, in which thoughts may precede it."""
    said = found.response.strip()
    for holds in (str.__eq__, str.__contains__):
        is_good, is_bad = (any(holds(text.strip(), said) for text in texts) for texts in (good, bad))
        if is_good != is_bad:
            return found if is_good else Reject("negative_label", verdicts)
    return Reject("ambiguous_form", names)
