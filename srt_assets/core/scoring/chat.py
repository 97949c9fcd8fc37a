"""A student's own chat template: what it writes before an answer, and what ends the turn.

Both are found with a probe answer. The prompt is everything that the template writes before it, in a conversation that
ends with it: the header of the turn, and an empty thought where the template wants one. The usual generation prompt may
be shorter, or open a thought that a plain answer does not have. The turn ends with what follows the answer, up to and
including the first mark, a token that stands for no text; with EOS if there is none. A template that cannot be read so
is refused in one sentence. Nothing here needs torch or transformers: `srt status` asks which students the rule changes.
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
from srt_assets.core.scoring.rendering import Renderer

# What every chat template takes for today: some print it, and the same text must give the same score tomorrow.
_DAY = datetime(2024, 7, 26)
_TOLD = {"date_string": f"{_DAY:%d %b %Y}"}
# Letters and digits, so that nothing merges with them, as no record has them.
PROBE = "Zq7Vx0Kj"
# An answer with what a template might alter; whitespace around it is the one thing that it may.
_RICH = f'{PROBE} "it\'s" <b>5 & 6</b>, {{x}} \\ 木 é\n\n    so\nend'
_ASKED = (PROBE[::-1], f"Two lines:\n{PROBE[::-1]}")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OF_MARKUP = frozenset("<>|[]{}")
REMEDY = "set student.template to vicuna, alpaca, wizardlm or none, or give its tokenizer another chat template"


@dataclass(frozen=True)
class Words:
    """What the rule needs of a tokenizer: its template, special tokens by name (`bos_token` …), and the marks."""

    template: str
    named: Mapping[str, str]
    marks: frozenset[str]


@dataclass(frozen=True)
class Turns:
    """How a template's turns of the assistant begin and end.

    `end`: the text that ends one, the EOS token's if no mark does; '' if there is none either. `ends_usual`: it is EOS.
    `usual`: it begins with the generation prompt. Both were taken for granted before this rule. `note`: what to know
    when the student is prompted, '' if its generation prompt will do.
    """

    end: str
    ends_usual: bool
    usual: bool
    note: str


class Chat:
    """The chat template of one student. UserError, which names it, if prompts and ends cannot be told."""

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
        except UserError:  # one that wants an answer has been given one
            generation = []
        usual = prompts == generation
        self.turns = Turns(end, end == eos, usual, "" if usual else _note(prompts, generation))

    def prompts(self, asked: Sequence[str]) -> list[str | None]:
        """For each text of a user all that the template writes before the answer; None if it fails at this text.

        UserError if it fails at all of them, or takes too much time or memory at one.
        """
        turns = [[_user(text), _assistant(PROBE)] for text in asked]
        found = self._renderer.each(turns, **_TOLD)
        errors = [text for text in found if isinstance(text, UserError)]
        if errors and len(errors) == len(found):
            raise errors[0]
        return [_before(text) if isinstance(text, str) else None for text in found]

    def _parts(self, answer: str) -> list[tuple[str, str]]:
        """What stands before and after this answer, for each question."""
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
    """Of a loaded tokenizer. UserError if it has no chat template, or none of that name."""
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise _none(student, str(error)) from None
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    return Words(template, tokenizer.special_tokens_map, _marks([*tokenizer.all_special_tokens], added))


def check(loaded: Chat, path: Path, fingerprint: str) -> None:
    """UserError if the loaded tokenizer makes something else of the template than its files say: what is kept and what
    is made again was decided by them.
    """
    said, does = of_student(path.name, path, fingerprint), loaded.turns
    if (said.end, said.ends_usual, said.usual) != (does.end, does.ends_usual, does.usual):
        raise UserError(
            f"the tokenizer of the student {path.name} ends a turn with {does.end!r}, its files say {said.end!r}",
            "save the tokenizer again: AutoTokenizer.from_pretrained(directory).save_pretrained(directory)",
        )


# Asked with every look at a student's state; the fingerprint stands for the files.
@lru_cache(maxsize=64)
def of_student(slug: str, path: Path, fingerprint: str) -> Turns:
    """Of a student's files, without loading its tokenizer. UserError as `Chat`."""
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
    """Special tokens, and added ones that look like markup: some add `<|im_end|>` and forget to call it special."""
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
