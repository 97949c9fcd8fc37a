"""The one parser for replies of all prompts and reply forms. It never raises; every outcome has a status.

Instruction and answer of a pair are always taken from the same place of the reply. The last complete match wins.
`[End]` closes a text only at the end of a line or of its section.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from srt_assets.core.teacher import ends, prompts, thoughts
from srt_assets.core.teacher.prompts import Form, Kind
from srt_assets.core.teacher.refusals import refuses
from srt_assets.core.teacher.shield import FRAME_MARKER, unshield

# The statuses for which a correction turn is worth its price.
CORRECTABLE = frozenset({"empty_reply", "no_markers", "placeholder"})

_PARTS = ("new instruction", "new answer", "better answer")
_PLACEHOLDERS = {prompts.PLACEHOLDER_INSTRUCTION, prompts.PLACEHOLDER_ANSWER, "n/a", ""}
_PLACEHOLDERS.update(_PARTS, (f"your {part}" for part in _PARTS))
# Bounded here, and possessive (`*+`) below: otherwise a long run of blanks or stars takes quadratic time on the event
# loop of all calls (20,000 blanks took 12 s).
_EMPHASIS = r"[*_`]{0,8}"
# What may precede a marker at the start of a line: heading, quote or list signs and a number. Within a line no number.
_SIGN = r"(?:[#>\-•]+[ \t]*+|\*[ \t]++)?"
_LEAD = rf"(?:(?:^|(?<=\n))[ \t]*+{_SIGN}(?:[*_]{{0,2}}\d{{1,2}}[.):]+[*_]{{0,2}})?[ \t]*)?"


class _Marker:
    """A bracketed name, with patterns for what may precede and follow it on its line.

    The whole pattern is tried only on lines that contain the name: trying it at every place of a text took half the
    time of parsing a reply.
    """

    def __init__(self, before: str, name: str, behind: str) -> None:
        name = rf"\[[ \t]*{name}[ \t]*\]"
        self._name = re.compile(name, re.IGNORECASE)
        self._whole = re.compile(before + name + behind, re.IGNORECASE)

    def finditer(self, text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[re.Match[str]]:
        """All matches in text[start:end], in order."""
        while name := self._name.search(text, start, end):
            line = text.rfind("\n", start, name.start()) + 1
            found = self._whole.search(text, max(line, start), end)
            if found is None:
                return
            yield found
            start = found.end()

    def search(self, text: str, start: int = 0, end: int = sys.maxsize) -> re.Match[str] | None:
        return next(self.finditer(text, start, end), None)


_END = _Marker(f"{_LEAD}{_EMPHASIS}", "end", rf"{_EMPHASIS}(?=[ \t.,;]*(\n|\Z))")
# Closing emphasis belongs to the marker only if it was opened before it: the text may itself begin in bold or with a
# code fence.
_CLOSED = r"\1[ \t]*:|[ \t]*:\1"
_WORDS = {"instruction": r"new[ \t]+instruction", "answer": r"new[ \t]+answer", "better": r"better[ \t]+answer"}
_BRACKETS = {name: _Marker(f"{_LEAD}({_EMPHASIS})", words, rf"(?:{_CLOSED}|\1)") for name, words in _WORDS.items()}
_NUMBERED = rf"^[ \t]*{_SIGN}(?:\d{{1,2}}[.):]+[ \t]*)?"
_COLONS = {
    name: re.compile(rf"{_NUMBERED}({_EMPHASIS}){words}(?:{_CLOSED})", re.IGNORECASE | re.MULTILINE)
    for name, words in _WORDS.items()
}


@dataclass(frozen=True)
class Parsed:
    """`status` is `ok` or a reason; `instruction` (of a pair) and `response` are texts only when it is `ok`.

    `no_end_marker`: the reply ended well, but its answer has no [End].
    """

    status: str
    instruction: str | None = None
    response: str | None = None
    no_end_marker: bool = False


def parse(
    kind: Kind,
    form: Form,
    reply: str | None,
    finish_reason: str | None,
    source: tuple[str, str, str] = ("", "", ""),
    of_older: bool = False,
) -> Parsed:
    """Parse a reply. `source`: the (instruction, input, response) shown to the teacher, to detect repetitions of it.

    `finish_reason` is a word of `ends`. `of_older`: an older program asked; it was less strict, and its verdicts stay.
    Statuses: ok, empty_reply, no_markers, placeholder, truncated_reply, unknown_finish, refused, prompt_echo,
    unchanged.
    """
    if finish_reason == ends.CONTENT_FILTER:
        return Parsed("refused")
    if finish_reason == ends.UNKNOWN and not of_older:
        return Parsed("unknown_finish")
    text = reply or ""
    if finish_reason != ends.STOP and (finish_reason or text.strip()):
        return Parsed("truncated_reply")
    if not text.strip():
        return Parsed("empty_reply")
    text = thoughts.as_before(text) if of_older else thoughts.without_thoughts(text, _answers(kind, form))
    pairs = _from_json(kind, text) if form == "json_schema" else _from_markers(kind, text)
    if not pairs:
        return Parsed("refused" if _declines(form, text) else "no_markers")
    if not of_older:
        pairs = [pair for found in pairs if (pair := _without_thoughts(found, form))]
        if not pairs:
            return Parsed("no_markers")
    real = [pair for pair in pairs if not any(_is_placeholder(part) for part in pair.texts)]
    if not real:
        return Parsed("refused" if _declines(form, text) else "placeholder")
    instruction, response, ended = real[-1]
    if reason := _worthless(instruction, response, source):
        return Parsed(reason)
    instruction = unshield(instruction) if instruction is not None else None
    return Parsed("ok", instruction, unshield(response), no_end_marker=not ended)


def normal(text: str) -> str:
    """A text normalized for comparison: without differences of Unicode form, case and spacing."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class _Pair(NamedTuple):
    """A candidate pair in a reply; the instruction is None if only a response was asked for. `ended`: has an [End]."""

    instruction: str | None
    response: str
    ended: bool = True

    @property
    def texts(self) -> list[str]:
        return [text for text in (self.instruction, self.response) if text is not None]


def _names(kind: Kind) -> tuple[str, ...]:
    return ("instruction", "answer") if kind == "instruction" else ("better",)


def _sections(names: Iterable[str], text: str) -> list[tuple[int, int, str]]:
    """(start, end, name) of the text after each marker with one of these names, up to the next one."""
    found = sorted((m.start(), m.end(), name) for name in names for m in _marks(name, text))
    ends_at = [*(start for start, _, _ in found[1:]), len(text)]
    return [(start, end, name) for (_, start, name), end in zip(found, ends_at, strict=False)]


def _from_markers(kind: Kind, text: str) -> list[_Pair]:
    """All complete matches in order. A pair needs both texts."""
    pairs: list[_Pair] = []
    instruction: str | None = None
    for start, end, name in _sections(_names(kind), text):
        body = _body(section := text[start:end])
        if name == "instruction":
            instruction = body or None
        elif body and (kind == "response" or instruction):
            pairs.append(_Pair(instruction, body, _END.search(section) is not None))
    return pairs


def _answers(kind: Kind, form: Form) -> thoughts.Answers:
    """Finds the places of the requested texts in a reply."""
    if form == "json_schema":
        return thoughts.Answers(lambda text: [place for place, _ in _placed_objects(text)], opaque=True)

    def find(text: str) -> thoughts.Ranges:
        found = [(start, end, _END.search(text, start, end)) for start, end, _ in _sections(_names(kind), text)]
        return [(start, closed.start() if closed else end) for start, end, closed in found]

    return thoughts.Answers(find)


def _without_thoughts(pair: _Pair, form: Form) -> _Pair | None:
    """The pair without thoughts; None if thoughts interrupt one of its texts."""
    if form == "json_schema":
        plain = [thoughts.without_thoughts(text, thoughts.EVERYWHERE).strip() for text in pair.texts]
        pair = _Pair(plain[0] if len(plain) > 1 else None, plain[-1])
    return None if any(not text or thoughts.BROKEN in text for text in pair.texts) else pair


def _marks(name: str, text: str) -> list[re.Match[str]]:
    return list(_BRACKETS[name].finditer(text)) or list(_COLONS[name].finditer(text))


def _body(section: str) -> str:
    *_, last = None, *_END.finditer(section)
    return (section[: last.start()] if last else section).strip()


def _from_json(kind: Kind, text: str) -> list[_Pair]:
    keys = ("new_instruction", "new_answer") if kind == "instruction" else ("better_answer",)
    pairs: list[_Pair] = []
    for found in _objects(text):
        values = [found.get(key) for key in keys]
        if all(isinstance(value, str) and value.strip() for value in values):
            *instruction, response = (str(value).strip() for value in values)
            pairs.append(_Pair(instruction[0] if instruction else None, response))
    return pairs


def _objects(text: str) -> list[dict]:
    """The JSON objects in a text, also between other words (code fences, chatter)."""
    return [found for _, found in _placed_objects(text)]


def _placed_objects(text: str) -> list[tuple[tuple[int, int], dict]]:
    decoder = json.JSONDecoder()
    found: list[tuple[tuple[int, int], dict]] = []
    place = text.find("{")
    while place >= 0 and len(found) < 100:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place = text.find("{", place + 1)
            continue
        if isinstance(value, dict):
            found.append(((place, end), value))
        place = text.find("{", end)
    return found


def _declines(form: Form, text: str) -> bool:
    """Whether a reply without a usable pair is a refusal: as a whole, after a marker or in a field of its JSON."""
    parts = [text, *(_body(text[start:end]) for start, end, _ in _sections(_WORDS, text))]
    if form == "json_schema":
        parts += [value for found in _objects(text) for value in found.values() if isinstance(value, str)]
    return any(map(refuses, parts))


def _is_placeholder(text: str) -> bool:
    return normal(text).strip(" .…'\"<>()[]{}*_`") in _PLACEHOLDERS


_TEXTS = (*prompts.CRITERIA.values(), *prompts.BRIEF.values())
_ECHO_CHARS = 40
_OURS = [line for text in _TEXTS for line in map(normal, text.splitlines()) if len(line) >= _ECHO_CHARS]
# Sentences of the example shown to the packaged teacher, which sometimes repeats them as its own.
_EXAMPLES = [normal(text.split("Answer]")[-1]).split(". ") for text in prompts.EXAMPLE.values()]
_EXAMPLE_SENTENCES = [sentence for sentences in _EXAMPLES for sentence in sentences if len(sentence) > 20]


def _worthless(instruction: str | None, response: str, source: tuple[str, str, str]) -> str | None:
    if refuses(response):
        return "refused"
    asked, given, answered = (normal(text) for text in source)
    parts = [part for part in (instruction, response) if part is not None]
    plain = [normal(part) for part in parts]
    if any(FRAME_MARKER.search(part) for part in parts) or any(map(_repeats_us, plain)):
        return "prompt_echo"
    shown = {text for text in (asked, f"{asked} {given}".strip()) if text}
    if plain[-1] in shown or (len(plain) == 2 and plain[0] == plain[1]):
        return "prompt_echo"
    if (instruction is not None and plain[0] in shown) or (answered and plain[-1] == answered):
        return "unchanged"
    return None


def _repeats_us(text: str) -> bool:
    if any(text.startswith(sentence) for sentence in _EXAMPLE_SENTENCES):
        return True
    return any(line in text or (len(text) >= _ECHO_CHARS and text in line) for line in _OURS)
