"""What a reply is worth: the one parser for all prompts and reply forms. It never raises; every outcome has a name.

A pair is taken whole from one place of the reply or not at all. The last complete match wins. `[End]` closes a text
only at the end of a line or of its section; no word inside a text does.
"""

import json
import re
import unicodedata
from dataclasses import dataclass

from srt_assets.core.teacher import prompts
from srt_assets.core.teacher.prompts import Form, Kind
from srt_assets.core.teacher.refusals import refuses
from srt_assets.core.teacher.shield import FRAME_MARKER, unshield

# One further turn is worth its price for these only: nothing else gets better by asking again.
CORRECTABLE = frozenset({"empty_reply", "no_markers", "placeholder"})

_PARTS = ("new instruction", "new answer", "better answer")
_PLACEHOLDERS = {prompts.PLACEHOLDER_INSTRUCTION, prompts.PLACEHOLDER_ANSWER, "n/a", ""}
_PLACEHOLDERS.update(_PARTS, (f"your {part}" for part in _PARTS))
# Bounded, and possessive (`*+`) below: without, a long run of blanks or stars takes the square of its length in time,
# on the loop of all calls (20,000 blanks took 12 s).
_EMPHASIS = r"[*_`]{0,8}"
# Before a marker at the start of a line: heading, quote or list signs and a number. Never a number inside a line.
_SIGN = r"(?:[#>\-•]+[ \t]*+|\*[ \t]++)?"
_LEAD = rf"(?:(?:^|(?<=\n))[ \t]*+{_SIGN}(?:[*_]{{0,2}}\d{{1,2}}[.):]+[*_]{{0,2}})?[ \t]*)?"
_END = re.compile(rf"{_LEAD}{_EMPHASIS}\[[ \t]*end[ \t]*\]{_EMPHASIS}(?=[ \t.,;]*(\n|\Z))", re.IGNORECASE)
# Emphasis closes only where it was opened: the text behind a marker may begin in bold or with a code fence.
_CLOSED = r"\1[ \t]*:|[ \t]*:\1"
_WORDS = {"instruction": r"new[ \t]+instruction", "answer": r"new[ \t]+answer", "better": r"better[ \t]+answer"}
_BRACKETS = {
    name: re.compile(rf"{_LEAD}({_EMPHASIS})\[[ \t]*{words}[ \t]*\](?:{_CLOSED}|\1)", re.IGNORECASE)
    for name, words in _WORDS.items()
}
_NUMBERED = rf"^[ \t]*{_SIGN}(?:\d{{1,2}}[.):]+[ \t]*)?"
_COLONS = {
    name: re.compile(rf"{_NUMBERED}({_EMPHASIS}){words}(?:{_CLOSED})", re.IGNORECASE | re.MULTILINE)
    for name, words in _WORDS.items()
}


@dataclass(frozen=True)
class Parsed:
    """`status` is `ok` or a reason; `instruction` (of a pair) and `response` are texts only when it is `ok`."""

    status: str
    instruction: str | None = None
    response: str | None = None


def parse(
    kind: Kind, form: Form, reply: str | None, finish_reason: str | None, source: tuple[str, str, str] = ("", "", "")
) -> Parsed:
    """Read a reply. `source` is (instruction, input, response) the teacher was shown, to see what it only repeats.

    Statuses: ok, empty_reply, no_markers, placeholder, truncated_reply, refused, prompt_echo, unchanged.
    """
    if finish_reason == "content_filter":
        return Parsed("refused")
    text = reply or ""
    if finish_reason != "stop" and (finish_reason or text.strip()):
        return Parsed("truncated_reply")
    if not text.strip():
        return Parsed("empty_reply")
    text = _without_thoughts(text)
    pairs = _from_json(kind, text) if form == "json_schema" else _from_markers(kind, text)
    if not pairs:
        return Parsed("refused" if _declines(form, text) else "no_markers")
    real = [pair for pair in pairs if not any(_is_placeholder(part) for part in pair if part is not None)]
    if not real:
        return Parsed("refused" if _declines(form, text) else "placeholder")
    instruction, response = real[-1]
    assert response is not None
    if reason := _worthless(instruction, response, source):
        return Parsed(reason)
    return Parsed("ok", unshield(instruction) if instruction is not None else None, unshield(response))


def normal(text: str) -> str:
    """A text as it is compared: Unicode form, case and spacing do not count."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _without_thoughts(text: str) -> str:
    """The reply without what a reasoning model thought first; its template may have written the opening tag itself."""
    opened = text.lstrip().startswith("<think>")
    before, closing, after = text.partition("</think>")
    if closing and (opened or "<think>" not in before):
        return after
    return "" if opened else text


_Pair = tuple[str | None, str]


def _from_markers(kind: Kind, text: str) -> list[_Pair]:
    """All complete matches in their order. A pair needs both texts, a response only one."""
    names = ("instruction", "answer") if kind == "instruction" else ("better",)
    found = sorted((m.start(), m.end(), name) for name in names for m in _marks(name, text))
    starts = [start for start, _, _ in found[1:]]
    pairs: list[_Pair] = []
    instruction: str | None = None
    for (_, end, name), next_start in zip(found, [*starts, len(text)], strict=False):
        body = _body(text[end:next_start])
        if name == "instruction":
            instruction = body or None
        elif body and (kind == "response" or instruction):
            pairs.append((instruction, body))
    return pairs


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
            pairs.append((instruction[0] if instruction else None, response))
    return pairs


def _objects(text: str) -> list[dict]:
    """JSON objects in a text: the whole of it, or what stands between other words (code fences, chatter)."""
    decoder = json.JSONDecoder()
    found: list[dict] = []
    place = text.find("{")
    while place >= 0 and len(found) < 100:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place = text.find("{", place + 1)
            continue
        if isinstance(value, dict):
            found.append(value)
        place = text.find("{", end)
    return found


def _declines(form: Form, text: str) -> bool:
    """Whether a reply without a usable pair refuses: the whole of it, behind a marker or in a field of its JSON."""
    spans = sorted(m.span() for name in _WORDS for m in _marks(name, text))
    ends = [*(start for start, _ in spans[1:]), len(text)]
    parts = [text, *(_body(text[start:end]) for (_, start), end in zip(spans, ends, strict=False))]
    if form == "json_schema":
        parts += [value for found in _objects(text) for value in found.values() if isinstance(value, str)]
    return any(map(refuses, parts))


def _is_placeholder(text: str) -> bool:
    return normal(text).strip(" .…'\"<>()[]{}*_`") in _PLACEHOLDERS


_TEXTS = (*prompts.CRITERIA.values(), *prompts.BRIEF.values())
_OURS = [normal(line) for text in _TEXTS for line in text.splitlines() if line]
_ECHO_CHARS = 40
# Sentences of the example that the packaged teacher is shown: it sometimes hands them back as its own.
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
    ours = (line for line in _OURS if len(line) >= _ECHO_CHARS)
    return any(line in text or (len(text) >= _ECHO_CHARS and text in line) for line in ours)
