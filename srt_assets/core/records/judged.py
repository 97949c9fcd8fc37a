"""Readers of rows with judged answers: preferences, lists of answers with labels, verified generations.

A label in a field of its own is checked in `fields.py`, ranks in trees in `trees.py`.
"""

from typing import Any

from srt_assets.core.records import fields
from srt_assets.core.records.columns import Row, input_of
from srt_assets.core.records.result import Alternative, Pair, Read, Reject, as_text, checked, is_filled, named, type_of
from srt_assets.core.records.rules import Rules
from srt_assets.core.records.turns import answer_of, looks_like_turns, messages_of, pair_of

# Fields that may hold the question of a judged answer, the likeliest first.
QUESTIONS = ("prompt", "messages", "conversations", "conversation", "instruction", "question", "problem")
# A list of answers, and the list of verdicts on them.
VERDICTS = (
    ("completions", "labels"),
    ("generations", "correctness_math_verify"),
    ("generations", "correctness_llama"),
)


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
    found = _question_and(row, good, good_name, rules, read)
    if isinstance(found, Pair):
        found = checked(found)
    if isinstance(found, Reject):
        read.rejects.append(found)
        return
    if is_filled(bad):
        other = _rejected(row, bad, bad_name, found, rules, read)
        if isinstance(other, Reject):
            read.rejects.append(other)
            return
        read.alternatives.append(Alternative(_KINDS[bad_name], bad_name, other))
    read.records.append(found)


_KINDS = {"rejected": "rejected", "non_preferred_output": "non_preferred"}


def _question_and(row: Row, answer: Any, name: str, rules: Rules, read: Read) -> Pair | Reject:
    """The pair of an answer and its question, which is part of the answer or in another column."""
    turns: list[Any] = []
    if not isinstance(answer, str):
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
    if where in ("messages", "conversations", "conversation") or isinstance(asked, list | dict):
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


def _rejected(row: Row, bad: Any, name: str, good: Pair, rules: Rules, read: Read) -> str | Reject:
    """The text of the answer judged worse. If its question is included, it must be that of the good answer."""
    if not isinstance(bad, str):
        turns = messages_of(bad, name)
        if isinstance(turns, list) and len(turns) > 1:
            other = pair_of(turns, rules, Read(), name)
            if isinstance(other, Reject):
                return other
            if other.instruction != good.instruction:
                return Reject("ambiguous_form", f"the questions of {name} and of the preferred answer")
    # Other fields of this answer do not matter, because it is never trained on.
    return answer_of(bad, rules, Read(), name)


def with_verdicts(row: Row, rules: Rules, read: Read) -> None:
    """A list of answers with a list of verdicts. The good answer is the record; bad ones are alternatives."""
    answers_name, verdicts_name = next((a, v) for a, v in VERDICTS if is_filled(row.get(a)) and is_filled(row.get(v)))
    answers, verdicts = row[answers_name], row[verdicts_name]
    if not (isinstance(answers, list) and isinstance(verdicts, list) and len(answers) == len(verdicts)):
        read.rejects.append(
            Reject("wrong_type", f"{answers_name} and {verdicts_name} are not lists of the same length")
        )
        return
    good: list[str] = []
    bad: list[str] = []
    for answer, said in zip(answers, verdicts, strict=True):
        verdict = fields.verdict(said)
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
    if rest := [text for text in good if text != found.response]:
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
        if isinstance(found, Pair) and found.response in bad:
            return Reject("negative_label", verdicts)
        return found
    if not good:
        return Reject("negative_label", named(verdicts))
    if len(good) > 1 and answers == "completions":  # other datasets store the steps of one answer there
        return Reject("several_good_answers", f"{len(good)} of {len(good) + len(bad)} {answers}")
    return _question_and(row, good[0], answers, rules, read)
