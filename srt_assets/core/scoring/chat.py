"""A student's own chat template: the prompt it writes before an answer, and the tokens that end the turn.

Both are found by rendering a conversation that ends with a probe answer. The prompt is everything before the probe: the
header of the turn, and an empty thought if the template writes one. The generation prompt is not used, because it may
be shorter, or open a thought that a plain answer does not have. The end of the turn is the text after the probe, up to
and including the first special token; EOS if there is none. A template with which this fails is refused with an error.
Nothing here loads torch or transformers, because `srt status` uses it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from srt_assets.core import files
from srt_assets.core.errors import UserError
from srt_assets.core.scoring.rendering import REMEDY, Renderer

# The date that every chat template sees. Some print it, and the same text must get the same score on every day.
_DAY = datetime(2024, 7, 26)
_TOLD = {"date_string": f"{_DAY:%d %b %Y}"}
# Letters and digits that no record contains, and that merge with nothing.
PROBE = "Zq7Vx0Kj"
# An answer with characters that a template might change. A template may only change whitespace around an answer.
_RICH = f'{PROBE} "it\'s" <b>5 & 6</b>, {{x}} \\ 木 é\n\n    so\nend'
_ASKED = (PROBE[::-1], f"Two lines:\n{PROBE[::-1]}")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OF_MARKUP = frozenset("<>|[]{}")


@dataclass(frozen=True)
class Words:
    """Facts of a tokenizer: its template, special tokens by name (`bos_token` …), and the marks that can end a turn."""

    template: str
    named: Mapping[str, str]
    marks: frozenset[str]


@dataclass(frozen=True)
class Turns:
    """How a template begins and ends the assistant's turn.

    `end`: the text that ends a turn: the first mark, else the EOS token, else ''. `ends_usual`: `end` is EOS. `usual`:
    the prompt is the generation prompt. Older versions of scoring assumed both. `note`: what a user of the student must
    know about its prompt; '' if it is the generation prompt.
    """

    end: str
    ends_usual: bool
    usual: bool
    note: str


class Chat:
    """The chat template of one student. UserError, which names the student, if prompt or end cannot be found."""

    def __init__(self, student: str, words: Words) -> None:
        self.student = student
        self._renderer = Renderer(words.template, words.named, student, _DAY.isoformat())
        plain, rich = (self._parts(answer) for answer in (PROBE, _RICH))
        if [before for before, _ in plain] != [before for before, _ in rich]:
            raise self._unfit("it writes something else before another answer")
        prompts = [before for before, _ in plain]
        if not all(PROBE[::-1] in prompt for prompt in prompts):
            raise self._unfit("it leaves the instruction out")
        eos = words.named.get("eos_token", "")
        end = _first_mark(plain[0][1], words.marks) or eos
        try:
            generation = self._render([[_user(text)] for text in _ASKED], add_generation_prompt=True)
        except UserError:  # some templates fail without an answer; they have no generation prompt
            generation = []
        usual = prompts == generation
        self.turns = Turns(end, end == eos, usual, "" if usual else _note(prompts, generation))

    def prompts(self, asked: Sequence[str]) -> list[str | None]:
        """The prompt for each text of a user; None if the template fails at this text.

        UserError if it fails at all texts, or needs too much time or memory for one.
        """
        turns = [[_user(text), _assistant(PROBE)] for text in asked]
        found = self._renderer.each(turns, **_TOLD)
        errors = [text for text in found if isinstance(text, UserError)]
        if errors and len(errors) == len(found):
            raise errors[0]
        return [_before(text) if isinstance(text, str) else None for text in found]

    def _parts(self, answer: str) -> list[tuple[str, str]]:
        """The text before and after this answer, for each question."""
        found = []
        for text in self._render([[_user(asked), _assistant(answer)] for asked in _ASKED]):
            before, _, after = text.rpartition(answer)
            if answer not in text:
                raise self._unfit("it alters the answer" if PROBE in text else "it leaves the answer out")
            if PROBE in before:
                raise self._unfit("it writes the answer more than once")
            found.append((before, after))
        return found

    def _render(self, turns: Sequence[Sequence[Mapping[str, str]]], **variables: Any) -> list[str]:
        return self._renderer.render(turns, **_TOLD, **variables)

    def _unfit(self, why: str) -> UserError:
        return UserError(f"the chat template of the student {self.student} cannot be used: {why}", REMEDY)


def words_of(student: str, tokenizer) -> Words:
    """The facts of a loaded tokenizer. UserError if it has no chat template."""
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise _none(student, str(error)) from None
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    return Words(template, tokenizer.special_tokens_map, _marks([*tokenizer.all_special_tokens], added))


def check(loaded: Chat, path: Path, fingerprint: str) -> None:
    """UserError if the loaded tokenizer ends turns differently from the tokenizer's files.

    Which scores are reused was decided from the files (`of_student`), without loading the tokenizer.
    """
    said, does = of_student(path.name, path, fingerprint), loaded.turns
    if (said.end, said.ends_usual, said.usual) != (does.end, does.ends_usual, does.usual):
        raise UserError(
            f"the tokenizer of the student {path.name} ends a turn with {does.end!r}, its files say {said.end!r}",
            "save the tokenizer again: AutoTokenizer.from_pretrained(directory).save_pretrained(directory)",
        )


# Cached, because it is called each time a student's state is computed; the fingerprint identifies the files.
@lru_cache(maxsize=64)
def of_student(slug: str, path: Path, fingerprint: str) -> Turns:
    """The turns of a student, from its files, without loading its tokenizer. UserError as `Chat`."""
    config, core = (_json(path / name) for name in ("tokenizer_config.json", "tokenizer.json"))
    template = path / "chat_template.jinja"
    given: Any = files.read_text(template) if files.is_there(template) else config.get("chat_template")
    if isinstance(given, list):
        given = {one["name"]: one["template"] for one in given}
    if isinstance(given, dict):
        given = given.get("default")
    if not isinstance(given, str):
        raise _none(slug, "its tokenizer has none")
    written = {**_json(path / "special_tokens_map.json"), **config}
    named = {name: text for name in _NAMED if (text := _text(written.get(name)))}
    listed = [*core.get("added_tokens", []), *config.get("added_tokens_decoder", {}).values()]
    added = {token["content"]: bool(token.get("special")) for token in listed}
    return Chat(slug, Words(given, named, _marks([*named.values()], added))).turns


def _json(path: Path) -> dict[str, Any]:
    if not files.is_there(path):
        return {}
    try:
        found = json.loads(files.read_text(path, files.TOKENIZER))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}", "save the tokenizer again") from None
    return found if isinstance(found, dict) else {}


def _text(token: Any) -> str:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _marks(special: Sequence[str], added: Mapping[str, bool]) -> frozenset[str]:
    """Special tokens, and added tokens that look like markup: some tokenizers do not mark `<|im_end|>` as special."""
    found = {*special, *(text for text, is_special in added.items() if is_special or _OF_MARKUP & {*text})}
    return frozenset(text for text in found if text.strip())


def _note(prompts: Sequence[str], generation: Sequence[str]) -> str:
    ours = prompts[0].partition(_ASKED[0])[2]
    theirs = f"ends with {generation[0].partition(_ASKED[0])[2]!r}" if generation else "cannot be made"
    return f"answers are scored and trained after {ours!r}; the generation prompt of its template {theirs}"


def _first_mark(text: str, marks: frozenset[str]) -> str:
    """The beginning of the text up to and including the first mark in it, '' if there is none."""
    places = [(text.index(mark), -len(mark)) for mark in marks if mark in text]
    start, length = min(places, default=(0, 0))
    return text[: start - length]


def _before(text: str) -> str | None:
    return text.rpartition(PROBE)[0] if PROBE in text else None


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _none(student: str, why: str) -> UserError:
    return UserError(f"the student {student} has no chat template to use: {why}", REMEDY)
