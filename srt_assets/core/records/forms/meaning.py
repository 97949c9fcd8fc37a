"""What a row means: its form, which is chosen by all its fields, and what becomes of the fields that the form leaves.

The forms are a table in `table.py`. Here one is chosen for each row, and two forms that fit are checked for
contradictions.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from srt_assets.core.records.files.json_types import type_of
from srt_assets.core.records.files.unreadable import Unreadable
from srt_assets.core.records.forms import checks, columns, fields, trees
from srt_assets.core.records.forms.columns import Row
from srt_assets.core.records.forms.result import Alternative, Pair, Read, Reject, is_filled, is_valid, named
from srt_assets.core.records.forms.rules import UNDER_OWN_NAME, Rules
from srt_assets.core.records.forms.table import FORMS, Form
from srt_assets.core.records.forms.turns import answers_of

_INSTRUCTIONS = frozenset(form.needs[0] for form in FORMS if form.is_columns)
_RESPONSES = frozenset(form.needs[1] for form in FORMS if form.is_columns)
_TURNS = frozenset({"messages", "conversations", "conversation"})
_BLANK = frozenset({"empty_instruction", "empty_response", "missing_instruction", "missing_response"})
_PASSAGES = fields.INPUTS | fields.QUESTIONS | {"text"}
# Which forms the names of a row's fields allow, by format and names: rows of one file have few shapes.
_shapes: dict[tuple[str, tuple[Any, ...]], list[Form]] = {}
_MOST_SHAPES, _WIDEST_SHAPE = 4096, 100
# Texts in a list, and characters of a text, that are looked for in a record.
_MOST_REPEATED, _BY_CHANCE = 100, 20


def read_row(row: Any, rules: Rules) -> Read:
    """One row, any JSON value: its records, or why it is rejected. Rows of a flat tree depend on their neighbours:
    see `trees.py`.
    """
    if isinstance(row, Unreadable):
        return Read().reject(row.reason, row.detail)
    if not isinstance(row, dict):
        return Read().reject("not_an_object", type_of(row))
    if trees.is_flat(row) and rules.format in ("auto", trees.FLAT) and not rules.unwrap:
        return next(read for _, _, read in read_rows([(0, row)], rules))
    return _unwrapped(row, rules) if rules.unwrap else _read(row, rules)


def read_rows(rows: Iterable[tuple[int, Any]], rules: Rules) -> Iterator[tuple[int, Any, Read]]:
    """Each row with its index and its result, in order. The rows of a flat tree are returned at the end of the tree."""
    tree = trees.Flat(rules)
    has_trees = rules.format in ("auto", trees.FLAT) and not rules.unwrap
    for index, row in rows:
        if has_trees and trees.is_flat(row):
            yield from tree.add(index, row)
        else:
            yield from tree.end()
            yield index, row, read_row(row, rules)
    yield from tree.end()


def _unwrapped(row: Row, rules: Rules) -> Read:
    inner = row.get(rules.unwrap)
    if not isinstance(inner, dict):
        return Read().reject("wrong_type", f"{named(rules.unwrap)} is {type_of(inner)}")
    read = _read(inner, rules)
    if read.records:
        _account(read, {name: value for name, value in row.items() if name != rules.unwrap}, set(), rules)
    return read


def _read(row: Row, rules: Rules) -> Read:
    read = Read()
    if rules.format == "mapped":
        read.form = "mapped"
        columns.mapped(row, rules, read)
        if read.records:
            _account(read, row, read.taken.union(rules.columns.values()), rules)
        return read
    taken: set[str] = set()
    nothing: Reject | None = None
    for form in _candidates(row, rules):
        if not all(is_filled(row[key]) for key in form.needs) or (form.fits and not form.fits(row)):
            continue
        if not read.form:
            form.reader(row, rules, read)
            if read.rejects and not read.records and _is_none(form, read.rejects[0]):
                # For example, `chosen` is a mark, or the messages are blank: another form may fit.
                nothing, read = nothing or read.rejects[0], Read()
                continue
            read.form = form.name
        elif why := _contradiction(read, form, row, rules):
            return read.reject(*why)
        taken.update(form.needs)
    if not read.form:
        return read.reject(*(nothing or _nothing(row)))
    if read.records:
        _account(read, row, taken | read.taken, rules)
    return read


def _is_none(form: Form, why: Reject) -> bool:
    """Whether a form that fails with this reject does not count. A conversation counts unless it is blank."""
    return why.is_no_reading and (form.name not in _TURNS or why.reason in _BLANK)


def _candidates(row: Row, rules: Rules) -> list[Form]:
    key = (rules.format, tuple(row))
    found = _shapes.get(key)
    if found is None:
        if len(_shapes) >= _MOST_SHAPES:
            _shapes.clear()
        forms = FORMS
        if rules.format != "auto":
            forms = tuple(form for form in FORMS if rules.format in (form.named, form.name))
        found = [form for form in forms if all(name in row for name in form.needs)]
        if len(row) <= _WIDEST_SHAPE:
            _shapes[key] = found
    return found


def _contradiction(read: Read, form: Form, row: Row, rules: Rules) -> Reject | None:
    """Why a second form of the row contradicts the first; None if it does not."""
    other = Read()
    form.reader(row, rules, other)
    if other.rejects:
        # A form that finds no texts does not count. Any other reject of it rejects the row.
        return None if other.rejects[0].is_no_reading or read.rejects else other.rejects[0]
    if not read.rejects and list(map(_said, other.records)) != list(map(_said, read.records)):
        return Reject("ambiguous_form", f"{read.form} and {form.name}")
    read.taken |= other.taken
    for name, kind in other.unread.items():
        read.unread.setdefault(name, kind)
    return None


def _said(pair: Pair) -> tuple[str, str]:
    """The texts of a pair for a comparison that ignores surrounding blanks and whether the input is separate."""
    instruction, given = pair.instruction.strip(), pair.input.strip()
    return (f"{instruction}\n{given}" if given else instruction), pair.response.strip()


def _account(read: Read, row: Row, taken: set[str], rules: Rules) -> None:
    """Decides about every field that was not read: it rejects the row, or is noted."""
    for name, value in row.items():
        if name in taken or not is_filled(value):
            continue
        if why := _of_field(read, name, value, rules):
            read.reject(*why)
            return
    for other in read.alternatives:
        if not is_valid(other.response):
            read.reject("invalid_text", "an answer judged worse")
            return
        if other.kind != "rank" and other.response.strip() == read.records[0].response.strip():
            read.reject("ambiguous_form", f"{other.label}: the same answer is called better and worse")
            return


def _of_field(read: Read, name: Any, value: Any, rules: Rules) -> Reject | None:
    """The reject for a field that no reader took; None if it is only noted, or goes to the alternatives."""
    key = fields.plain(name) if isinstance(name, str) else ""
    is_mark = isinstance(value, bool | int | float)
    if key == "rejected" and key not in rules.off:
        if is_mark:
            return checks.if_true("negative_label")(name, value)
        texts = answers_of(value, rules, Read(), name)
        if isinstance(texts, Reject):
            return texts
        read.alternatives += [Alternative("rejected", named(name), text) for text in texts]
        return None
    if key == "chosen" and is_mark and "label" not in rules.off:
        return checks.label(name, value)
    if key in _PASSAGES and key not in rules.off:
        if _repeats(value, read.records) or (key == "text" and _renders(value, read.records)):
            read.unused[named(name)] = type_of(value)
            return None
        if _is_passage(key, value, read.records, rules):
            return Reject("unread_input", named(name))
    return fields.account(read, name, value, off=rules.off)


def _is_passage(key: str, value: Any, records: list[Pair], rules: Rules) -> bool:
    """Whether a field holds something that the record lacks. With a mapping or a named format the user has decided."""
    if key in UNDER_OWN_NAME["input"]:
        return True
    if rules.format == "mapped":
        return False
    if key in fields.INPUTS:
        return True
    # If the instruction is in it, the text was made from the record with a template.
    return rules.format == "auto" and not (
        isinstance(value, str) and all(p.instruction.strip() in value for p in records)
    )


def _repeats(value: Any, records: list[Pair]) -> bool:
    """Whether every record contains this text, or all texts of a list. Short texts, which may occur by chance, must
    equal a field.
    """
    inner = list(value.values() if isinstance(value, dict) else value) if isinstance(value, list | dict) else [value]
    if len(inner) > _MOST_REPEATED or not all(isinstance(text, str) for text in inner):
        return False
    texts = [text.strip() for text in inner]
    if sum(map(len, texts)) < _BY_CHANCE:
        return all(any(texts == [part.strip()] for part in pair) for pair in records)
    return all(all(any(text in part for part in pair) for text in texts) for pair in records)


def _renders(value: Any, records: list[Pair]) -> bool:
    """Whether a text contains all texts of every record: it was made from them with a template."""
    return isinstance(value, str) and all(all(text.strip() in value for text in pair) for pair in records)


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
