"""Removes the model's thoughts from a reply, so that a draft inside the thoughts is not taken for the answer.

In doubt a text counts as thoughts, because accepted texts become training data. But an answer may mention such marks in
code or in a sentence. The marks themselves are in `marks.py`.
"""

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from srt_assets.core.teacher import marks
from srt_assets.core.teacher.marks import MARKS, Mark

# Replaces thoughts found in the middle of a line of an answer. Such an answer is rejected.
BROKEN = "\ufdd0"
_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
_MENTION_CHARS, _MENTION_WORDS, _NEAR_CHARS = 60, 8, 200
_SENTENCE_ENDS = tuple(".!?:;]}。！？：；")
_SENTENCE = re.compile(r"[.!?。！？\n]")

# (start, end) in the text, in order.
Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class Answers:
    """Finds the answers in a reply. `opaque`: marks inside an answer are handled later, after decoding (JSON)."""

    find: Callable[[str], Ranges]
    opaque: bool = False


NOWHERE = Answers(lambda text: [])
EVERYWHERE = Answers(lambda text: [(0, len(text))])


def without_thoughts(text: str, answers: Answers = NOWHERE) -> str:
    """The reply without its thoughts and without marks around the whole of it; '' if it is nothing but thoughts."""
    text = _without_marks(_final_channel(text), answers)
    while (shorter := _unwrapped(text)) != text:
        text = shorter
    return text


def marks_in(text: str) -> list[str]:
    """The first marks of thoughts in a reply, unchanged: an opening, a closing, or both."""
    if channel := marks.CHANNEL.search(text):
        return [channel[0]]
    events = _Marks(marks.plain(text)[0]).events
    first = [next((match[0] for _, match, opens in events if opens is wanted), None) for wanted in (True, False)]
    return [mark.strip() for mark in first if mark]


def as_before(text: str) -> str:
    """Remove thoughts as older programs did: only `<think>` at the beginning of the reply, and no other mark."""
    opened = text.lstrip().startswith("<think>")
    before, closing, after = text.partition("</think>")
    if closing and (opened or "<think>" not in before):
        return after
    return "" if opened else text


def _final_channel(text: str) -> str:
    found = list(marks.CHANNEL.finditer(text))
    if not found:
        if bare := marks.BARE_CHANNEL.match(text):
            final = marks.BARE_FINAL.search(text, bare.end())
            return text[final.end() :] if final else text if bare[1] else ""
        return text
    outside, final_texts = [text[: found[0].start()]], []
    for mark, following in zip(found, [*found[1:], None], strict=True):
        segment = text[mark.end() : following.start() if following else len(text)]
        end = marks.CHANNEL_END.search(segment)
        inside, rest = (segment[: end.start()], segment[end.end() :]) if end else (segment, "")
        outside.append(rest)
        if mark[1].lower() in marks.FINAL_CHANNELS:
            final_texts.append(inside)
    return "".join(final_texts or (marks.TURN.sub("", rest) for rest in outside))


def _unwrapped(text: str) -> str:
    for wrapper in marks.WRAPPERS:
        if opening := wrapper.opens.search(text):
            closing = wrapper.closes.search(text)
            return text[opening.end() : closing.start() if closing else len(text)]
    head, tail = text[:-_NEAR_CHARS], text[-_NEAR_CHARS:]
    return head + marks.SPECIAL_AT_END.sub("", tail)


def _without_marks(text: str, answers: Answers) -> str:
    seen, places = marks.plain(text)
    found = _Marks(seen)
    if not found.events:
        return text
    ranges = answers.find(text)
    if places is not None:
        ranges = [(bisect_left(places, start), bisect_left(places, end)) for start, end in ranges]

    def place(at: int) -> int:
        return at if places is None else places[at] if at < len(places) else len(text)

    kept: list[str] = []
    last = 0
    for start, end, instead in _cuts(seen, found, ranges, answers.opaque):
        if start == 0:  # the opening is missing: everything before is thoughts too
            kept.clear()
        else:
            kept.append(text[place(last) : place(start)])
        kept.append(instead)
        last = end
    return "".join(kept) + text[place(last) :] if last else text


class _Marks:
    """All openings and closings in a text, in order, and which closing belongs to an opening."""

    def __init__(self, text: str) -> None:
        possible = [mark for mark in MARKS if not mark.needs or any(part in text for part in mark.needs)]
        self.events = [(mark, match, True) for mark in possible for match in mark.opens.finditer(text)]
        self.events += [(mark, match, False) for mark in possible for match in mark.closes.finditer(text)]
        self.events.sort(key=lambda event: event[1].start())
        self._of: dict[tuple[int, str, bool], list[re.Match[str]]] = defaultdict(list)
        for mark, match, opens in self.events:
            self._of[self._kind(mark, match, opens)].append(match)

    def following(self, mark: Mark, opening: re.Match[str], opens: bool) -> re.Match[str] | None:
        """The next opening, or closing, of the same kind."""
        same = self._of[self._kind(mark, opening, opens)]
        at = bisect_left(same, opening.end(), key=re.Match.start)
        return same[at] if at < len(same) else None

    @staticmethod
    def _kind(mark: Mark, match: re.Match[str], opens: bool) -> tuple[int, str, bool]:
        return id(mark), match["name"].casefold() if mark.names else "", opens


def _cuts(text: str, found: _Marks, answers: Ranges, opaque: bool) -> Iterator[tuple[int, int, str]]:
    """(start, end, replacement) of each span of thoughts, in order. A start of 0 removes everything before `end`."""
    starts = [start for start, _ in answers]
    in_code: dict[tuple[int, int], Callable[[int], bool]] = {}
    gone_to = 0
    for mark, match, opens in found.events:
        start = match.start()
        if start < gone_to or not (opens or mark.eaten):
            continue
        at = bisect_right(starts, start) - 1
        inside = answers[at] if at >= 0 and start < answers[at][1] else None
        if inside:
            if opaque:
                continue
            if inside not in in_code:
                in_code[inside] = _code_in(text, inside)
            if in_code[inside](start):
                continue
        cut: tuple[int, int, str] | None = (0, match.end(), "")
        if opens:
            cut = _span(text, found, mark, match, inside, gone_to)
        if cut is not None:
            yield cut
            gone_to = cut[1]


def _span(
    text: str, found: _Marks, mark: Mark, opening: re.Match[str], inside: tuple[int, int] | None, gone_to: int
) -> tuple[int, int, str] | None:
    """The span of thoughts that the opening begins; None if it begins none.

    If both marks are only mentioned in a sentence, the span is empty and lies after the closing.
    """
    start = opening.start()
    before = text[max(gone_to, start - _NEAR_CHARS) : start].rstrip(" \t*_")
    if opening[0].rstrip(" \t|>").endswith("/"):  # <think/>
        return start, opening.end(), ""
    in_front = inside is not None and start - inside[0] < _NEAR_CHARS and not text[inside[0] : start].strip()
    begins, after_sentence = in_front or not before or before.endswith("\n"), before.endswith(_SENTENCE_ENDS)
    if mark.in_front and not begins:
        return None
    closing = found.following(mark, opening, False)
    if closing is None:
        return (start, len(text), "") if mark.never_closed and (begins or after_sentence) else None
    if begins:
        return start, closing.end(), ""
    if inside is None:  # "it explains <think> badly", and then an answer that speaks of <think> too
        again = found.following(mark, opening, True)
        return None if again and again.start() < closing.start() else (start, closing.end(), "")
    inner = text[opening.end() : min(closing.start(), opening.end() + _MENTION_CHARS)]
    short = len(inner) < _MENTION_CHARS and len(inner.split()) < _MENTION_WORDS and not _SENTENCE.search(inner)
    if short and not after_sentence and closing.end() <= inside[1]:  # "put it between <think> and </think>"
        return closing.end(), closing.end(), ""
    return start, closing.end(), BROKEN


def _code_in(text: str, answer: tuple[int, int]) -> Callable[[int], bool]:
    """A function that tells whether a place of this answer is within code."""
    spans = [(m.start() + answer[0], m.end() + answer[0]) for m in _CODE.finditer(text[slice(*answer)])]
    starts = [start for start, _ in spans]

    def within(place: int) -> bool:
        at = bisect_left(starts, place) - 1
        return at >= 0 and place < spans[at][1]

    return within
