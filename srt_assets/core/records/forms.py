"""The table of forms, and how a row's form is told: from all its fields, row by row, one reading or none.

A form is a line of the table; how it is read is in `columns.py`, `turns.py`, `judged.py` and `trees.py`. Whatever a
row holds beside what its form reads is accounted for by `fields.py`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from srt_assets.core.records import columns, fields, judged, trees
from srt_assets.core.records.columns import Row
from srt_assets.core.records.result import Alternative, Pair, Read, Reject, checked, is_filled, is_valid, named, type_of
from srt_assets.core.records.rules import Rules
from srt_assets.core.records.turns import answer_of, looks_like_turns, messages_of, pair_of

Reader = Callable[[Row, Rules, Read], None]


@dataclass(frozen=True)
class Form:
    """A form of rows. `needs`: fields that must be filled; `fits`: what else must be so; `named`: the word of
    datasets.format that asks for it. The reader says in `Read.taken` which further fields it looked at.
    """

    name: str
    needs: tuple[str, ...]
    reader: Reader
    named: str = ""
    fits: Callable[[Row], bool] | None = None


def _columns(name: str, instruction: str, response: str, *inputs: str, named: str = "") -> Form:
    inputs = ("input", "context", *inputs)

    def reader(row: Row, rules: Rules, read: Read) -> None:
        read.taken.update(inputs)
        _keep(read, columns.pair(row, instruction, inputs, response, read))

    return Form(name, (instruction, response), reader, named)


def _turns(key: str, named: str) -> Form:
    def reader(row: Row, rules: Rules, read: Read) -> None:
        turns = messages_of(row[key], key)
        found = turns if isinstance(turns, Reject) else pair_of(turns, rules, read, key)
        asked = row.get("prompt")
        if isinstance(found, Pair) and isinstance(asked, str) and is_filled(asked):
            read.taken.add("prompt")
            if asked.strip() != found.instruction.strip():
                found = Reject("ambiguous_form", f"prompt and {key}")
        _keep(read, found)

    return Form(key, (key,), reader, named, lambda row: looks_like_turns(row[key]))


def _texts_in_turn(row: Row, rules: Rules, read: Read) -> None:
    """UltraChat's older form: a list of texts, the user's and the assistant's in turn."""
    keys = rules.role_keys[0], rules.text_keys[0]
    turns = [dict(zip(keys, (("user", "assistant")[n % 2], text), strict=True)) for n, text in enumerate(row["data"])]
    _keep(read, pair_of(turns, rules, read, "data"))


def _prompt_of_messages(row: Row, rules: Rules, read: Read) -> None:
    """TRL's conversational prompt and completion: two lists of messages that follow each other."""
    turns: list[Any] = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        given = row[name]
        if isinstance(given, str):
            given = [{rules.role_keys[0]: role, rules.text_keys[0]: given}]
        found = messages_of(given, name)
        if isinstance(found, Reject):
            return _keep(read, found)
        turns += found
    return _keep(read, pair_of(turns, rules, read, "prompt"))


def _has_text_list(row: Row) -> bool:
    return isinstance(row["data"], list) and all(isinstance(text, str) for text in row["data"])


# The first that fits is the row's form; others that fit must say the same.
FORMS: tuple[Form, ...] = (
    Form("oasst_tree", ("prompt",), trees.whole, fits=lambda row: trees.is_node(row["prompt"])),
    Form(
        "openai_preference",
        ("input", "preferred_output"),
        judged.openai_preference,
        fits=lambda row: isinstance(row["input"], dict) and is_filled(row["input"].get("messages")),
    ),
    *(
        Form(f"{answers}_{verdicts}", (answers, verdicts),
             judged.with_verdicts, fits=lambda row, a=answers, v=verdicts: isinstance(row[a], list) and isinstance(row[v], list))  # fmt: skip
        for answers, verdicts in judged.VERDICTS
    ),
    Form("preference", ("chosen",), judged.preference),
    _turns("messages", "messages"),
    _turns("conversations", "sharegpt"),
    _turns("conversation", "messages"),
    Form("texts_in_turn", ("data",), _texts_in_turn, fits=_has_text_list),
    Form("prompt_messages", ("prompt", "completion"), _prompt_of_messages,
         fits=lambda row: isinstance(row["prompt"], list) or isinstance(row["completion"], list | dict)),  # fmt: skip
    Form("self_instruct", ("instruction", "instances"), columns.instances,
         fits=lambda row: isinstance(row["instances"], list)),  # fmt: skip
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
MAPPED = Form("mapped", (), frozenset(), columns.mapped)
BY_NAME: dict[str, Form] = {form.name: form for form in FORMS}
_INSTRUCTIONS = frozenset(form.needs[0] for form in FORMS[-10:])
_RESPONSES = frozenset(form.needs[1] for form in FORMS[-10:])
_INPUTS = frozenset({"input", "context", "article", "passage", "document"})
_TURNS = frozenset({"messages", "conversations", "conversation"})
# Which forms a set of fields allows, and what is to be accounted for; rows of one file have few shapes.
_Shape = list[Form]
_shapes: dict[tuple[str, tuple[Any, ...]], _Shape] = {}
_MOST_SHAPES = 4096


def read_row(row: Any, rules: Rules) -> Read:
    """One row, any JSON value, by itself: its records, or why it is none. Rows of a flat tree need their neighbours:
    see `trees.py`.
    """
    read = Read()
    if not isinstance(row, dict):
        return read.reject("not_an_object", type_of(row))
    if trees.is_flat(row) and rules.format in ("auto", trees.FLAT) and not rules.unwrap:
        return next(read for _, _, read in read_rows([(0, row)], rules))
    if rules.unwrap:
        return _unwrapped(row, rules, read)
    return _read(row, rules, read)


def read_rows(rows: Iterable[tuple[int, Any]], rules: Rules) -> Iterator[tuple[int, Any, Read]]:
    """Each row with its place and what became of it, in their order. Rows of a flat tree wait for its end."""
    tree = trees.Flat(rules)
    has_trees = rules.format in ("auto", trees.FLAT) and not rules.unwrap
    for index, row in rows:
        if has_trees and trees.is_flat(row):
            yield from tree.add(index, row)
        else:
            yield from tree.end()
            yield index, row, read_row(row, rules)
    yield from tree.end()


def _unwrapped(row: Row, rules: Rules, read: Read) -> Read:
    inner = row.get(rules.unwrap)
    if not isinstance(inner, dict):
        return read.reject("wrong_type", f"{named(rules.unwrap)} is {type_of(inner)}")
    _read(inner, rules, read)
    if read.records:
        _account(read, {name: value for name, value in row.items() if name != rules.unwrap}, set(), rules)
    return read


def _read(row: Row, rules: Rules, read: Read) -> Read:
    if rules.format == "mapped":
        read.form = "mapped"
        columns.mapped(row, rules, read)
        if read.records:
            _account(read, row, read.taken.union(rules.columns.values()), rules)
        return read
    taken: set[str] = set()
    for form in _candidates(row, rules):
        if not all(is_filled(row[key]) for key in form.needs) or (form.fits and not form.fits(row)):
            continue
        if not read.form:
            form.reader(row, rules, read)
            read.form = form.name
        elif why := _contradiction(read, form, row, rules):
            return read.reject(*why)
        taken.update(form.needs)
    if not read.form:
        return read.reject(*_nothing(row))
    if read.records:
        _account(read, row, taken | read.taken, rules)
    return read


def _candidates(row: Row, rules: Rules) -> _Shape:
    key = (rules.format, tuple(row))
    found = _shapes.get(key)
    if found is None:
        if len(_shapes) >= _MOST_SHAPES:
            _shapes.clear()
        forms = FORMS
        if rules.format != "auto":
            forms = tuple(form for form in FORMS if rules.format in (form.named, form.name))
        found = _shapes[key] = [form for form in forms if all(name in row for name in form.needs)]
    return found


def _contradiction(read: Read, form: Form, row: Row, rules: Rules) -> Reject | None:
    """Why a second reading of the row does not go with the first."""
    other = Read()
    form.reader(row, rules, other)
    if other.rejects:
        # One that comes to nothing is none. But what makes it no record makes the row none.
        return None if other.rejects[0].is_no_reading or read.rejects else other.rejects[0]
    if not read.rejects and list(map(_said, other.records)) != list(map(_said, read.records)):
        return Reject("ambiguous_form", f"{read.form} and {form.name}")
    read.taken |= other.taken
    for name, kind in other.unread.items():
        read.unread.setdefault(name, kind)
    return None


def _said(pair: Pair) -> tuple[str, str]:
    """The texts of a pair where it does not matter whether the input stands apart, nor what blanks surround them."""
    instruction, given = pair.instruction.strip(), pair.input.strip()
    return (f"{instruction}\n{given}" if given else instruction), pair.response.strip()


def _account(read: Read, row: Row, taken: set[str], rules: Rules) -> None:
    """Every field that was not read: it rejects the row, or is noted."""
    for name, value in row.items():
        if name in taken or not is_filled(value):
            continue
        why: Reject | None
        if name == "rejected" and name not in rules.off:
            text = answer_of(value, rules, Read(), name)
            why = text if isinstance(text, Reject) else None
            if isinstance(text, str):
                read.alternatives.append(Alternative("rejected", name, text))
        elif name in _INPUTS and name not in rules.off and not _repeats(value, read.records):
            why = Reject("unread_input", named(name))
        else:
            why = fields.account(read, name, value, off=rules.off)
        if why:
            read.reject(*why)
            return
    if read.alternatives and not all(is_valid(other.response) for other in read.alternatives):
        read.reject("invalid_text", "an answer judged worse")


def _repeats(value: Any, records: list[Pair]) -> bool:
    """Whether a text stands in every record anyway."""
    return isinstance(value, str) and all(any(value.strip() in text for text in pair) for pair in records)


def _nothing(row: Row) -> Reject:
    """Why no form fits."""
    names = {name for name in row if isinstance(name, str)}
    asked, answered = names & (_INSTRUCTIONS | _TURNS), names & _RESPONSES
    filled = {name for name in asked | answered if is_filled(row[name])}
    where = ", ".join(map(named, list(row)[:20]))
    if not asked | answered:
        text = isinstance(row.get("text"), str) and is_filled(row["text"])
        return Reject("no_structure" if text else "unknown_form", where or "no fields")
    if filled & _TURNS:
        return Reject("wrong_type", ", ".join(sorted(filled & _TURNS)))
    if filled & asked and filled & answered:
        return Reject("unknown_form", where)
    if filled & asked:
        blank = any(isinstance(row[name], str) for name in answered - filled)
        return Reject("empty_response" if blank else "missing_response", where)
    blank = any(isinstance(row[name], str) for name in asked)
    return Reject("empty_instruction" if blank else "missing_instruction", where)


def _keep(read: Read, found: Pair | Reject) -> None:
    if isinstance(found, Pair):
        found = checked(found)
    if isinstance(found, Pair):
        read.records.append(found)
    else:
        read.rejects.append(found)
