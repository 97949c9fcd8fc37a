"""Turns a candidate's texts into token ids, and tells context from scored tokens, for both protocols.

A `Pass` is one sequence for the student: ids, and the index of the first scored one. Both protocols have four passes:

    response                     L(y)        no context but BOS
    response_given_prompt        L(y|x)
    instruction                  L(x)        no context but BOS
    instruction_given_response   L(x|y')     y' asks to guess the instruction of response y

`aligned`: prompt and target are tokenized separately and their ids joined, so that a ratio compares the same ids with
and without context. `official`: the whole text is tokenized and the target found in it, as the authors' script does.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from srt_assets.core.errors import UserError
from srt_assets.core.scoring import templates
from srt_assets.core.scoring.chat import PROBE, Chat, words_of
from srt_assets.core.tables import PASSES

EMPTY_TARGET = "empty_target"
NO_SCORED_TOKENS = "no_scored_tokens"
PROMPT_TOO_LONG = "prompt_too_long"
NOT_ENCODABLE = "not_encodable"
OUT_OF_VOCABULARY = "out_of_vocabulary"
TEMPLATE_FAILED = "template_failed"


class Texts(NamedTuple):
    """The texts of one candidate."""

    instruction: str
    input: str
    response: str


@dataclass(frozen=True)
class Pass:
    """A sequence to score: `ids` int32 [length], scored from `start` (≥ 1) on; `truncated`: the target was cut."""

    ids: np.ndarray
    start: int
    truncated: bool = False

    @property
    def n_scored(self) -> int:
        return len(self.ids) - self.start

    @property
    def key(self) -> bytes:
        """Passes with equal keys have equal losses."""
        return self.start.to_bytes(4, "little") + self.ids.tobytes()


Encoded = dict[str, Pass | str]
"""The four passes of a candidate by name; instead of a pass, a status (text) says why there is none."""


class Encoder:
    """Encodes candidates for one student, template and protocol.

    `max_length`: longest sequence in tokens, context included. Raises UserError if the tokenizer has no chat template
    and the template is `chat`, or if the protocol does not know the template.
    """

    def __init__(self, tokenizer, template: str, protocol: str, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.protocol = protocol
        self.max_length = max_length
        self.bos = leading_special_ids(tokenizer)
        # Number of target tokens that are not scored: without BOS and context, nothing precedes the first one.
        self.dropped = 0 if self.bos else 1
        if template == "chat" and protocol == "official":
            raise UserError("protocol 'official' has no template 'chat'", 'set student.protocol = "aligned"')
        student = Path(getattr(tokenizer, "name_or_path", "")).name
        self.chat = Chat(student, words_of(student, tokenizer)) if template == "chat" else None

    @cached_property
    def end(self) -> tuple[int, ...]:
        """Token ids that end an answer in training: the end of the chat template's turn, or EOS. UserError if none."""
        if self.chat and not self.chat.turns.ends_usual:
            # Tokenized after an answer, because some tokenizers put a space before the first word of a text.
            texts = (PROBE, PROBE + self.chat.turns.end)
            alone, whole = (self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts)
            if whole[: len(alone)] == alone:
                return tuple(whole[len(alone) :])
            return tuple(self.tokenizer(self.chat.turns.end, add_special_tokens=False)["input_ids"])
        if self.tokenizer.eos_token_id is None:
            raise UserError("the student's tokenizer has no EOS token", "set eos_token in its tokenizer_config.json")
        return (self.tokenizer.eos_token_id,)

    def _render(self, pairs: Sequence[tuple[str, str]]) -> Sequence[str | None]:
        """Prompts for instruction and input; None where the chat template fails at these texts."""
        if self.chat:
            return self.chat.prompts([templates.join(*pair) for pair in pairs])
        return [templates.TEMPLATES[self.template](*pair) for pair in pairs]

    @property
    def first_token(self) -> str:
        """How the pass without context begins: after `bos`, or with the first target token `dropped` in both."""
        return "bos" if self.bos else "dropped"

    def encode(self, candidates: Sequence[Texts]) -> list[Encoded]:
        """The passes of each candidate, in order."""
        rows = [c if all(map(_encodable, c)) else None for c in candidates]
        good = [row for row in rows if row is not None]
        done = iter(self._official(good) if self.protocol == "official" else self._aligned(good))
        return [next(done) if row is not None else dict.fromkeys(PASSES, NOT_ENCODABLE) for row in rows]

    def for_training(self, candidates: Sequence[Texts], max_length: int) -> list[Pass | str]:
        """For each candidate the ids of `response_given_prompt` and the end of the answer, for training.

        `truncated`: they are longer than `max_length`. The loss counts from `start` on, which is always the first token
        of the response, also where scoring drops that token. A status (text) instead of a pass says why the candidate
        cannot be trained on.
        """
        longest = copy(self)
        longest.max_length, longest.dropped = max_length, 0
        rows = [c if all(map(_encodable, c)) else None for c in candidates]
        good = [row for row in rows if row is not None]
        done = iter(longest._official_given(good) if self.protocol == "official" else longest._aligned_given(good))
        found: list[Pass | str] = []
        for row in rows:
            one = NOT_ENCODABLE if row is None else next(done)
            if isinstance(one, Pass) and not one.truncated:
                ids = np.concatenate([one.ids, np.asarray(self.end, np.int32)])
                one = Pass(ids[:max_length], one.start, len(ids) > max_length)
            found.append(one)
        return found

    # -- aligned

    def _aligned(self, rows: list[Texts]) -> list[Encoded]:
        prompts = self._render([(r.instruction, r.input) for r in rows])
        guesses = self._render([(templates.guess(r.response), "") for r in rows])
        targets = [templates.join(r.instruction, r.input) for r in rows]
        # `<s>old</s>` in an answer about HTML is text: only marks written by a chat template are special tokens.
        written = [text for text in (*prompts, *guesses) if text is not None]
        before = self._tokenize(written, special=False, markup=self.template == "chat")
        ids = self._tokenize([*targets, *(r.response for r in rows)], special=False, markup=False)
        # A chat template writes its own BOS; other prompts get the tokens that the tokenizer would add.
        context = () if self.template == "chat" else self.bos
        found: list[Encoded] = []
        for row, prompt, guess, target in zip(rows, prompts, guesses, targets, strict=True):
            if prompt is None or guess is None:
                found.append(dict.fromkeys(PASSES, TEMPLATE_FAILED))
                continue
            direct, given = self._pair((*context, *before[prompt]), row.response, ids)
            reverse_direct, reverse_given = self._pair((*context, *before[guess]), target, ids)
            found.append(dict(zip(PASSES, (direct, given, reverse_direct, reverse_given), strict=True)))
        return found

    def _pair(self, prompt: Sequence[int], text: str, ids: dict[str, list[int]]) -> tuple[Pass | str, Pass | str]:
        """Two passes with the same target ids, without and with the prompt; or one status for both."""
        if not text.strip():
            return EMPTY_TARGET, EMPTY_TARGET
        target = ids[text]
        dropped = self.dropped
        room = self.max_length - max(len(prompt), len(self.bos))
        if room <= dropped < len(target):
            return PROMPT_TOO_LONG, PROMPT_TOO_LONG
        scored = target[:room]
        if len(scored) <= dropped:
            return NO_SCORED_TOKENS, NO_SCORED_TOKENS
        truncated = len(scored) < len(target)
        # With an empty chat prompt the first token has no context either; max() keeps `start` at 1 or more.
        direct = Pass(_array(self.bos, scored), max(len(self.bos) + dropped, 1), truncated)
        given = Pass(_array(prompt, scored), max(len(prompt) + dropped, 1), truncated)
        return direct, given

    def _aligned_given(self, rows: list[Texts]) -> list[Pass | str]:
        """The pass `response_given_prompt` only, which saves tokenizing the others."""
        prompts = self._render([(r.instruction, r.input) for r in rows])
        # If the chat template fails at the r-IFD prompt, the row has no scores and is not trained on either.
        guesses = self._render([(templates.guess(r.response), "") for r in rows]) if self.chat else prompts
        before = self._tokenize([p for p in prompts if p is not None], special=False, markup=self.template == "chat")
        ids = self._tokenize((r.response for r in rows), special=False, markup=False)
        context = () if self.template == "chat" else self.bos
        return [
            TEMPLATE_FAILED
            if prompt is None or guess is None
            else self._pair((*context, *before[prompt]), row.response, ids)[1]
            for row, prompt, guess in zip(rows, prompts, guesses, strict=True)
        ]

    # -- official

    def _official(self, rows: list[Texts]) -> list[Encoded]:
        render = templates.TEMPLATES[self.template]
        prompts = [render(r.instruction, r.input) for r in rows]
        guesses = [render(templates.guess(r.response), "") for r in rows]
        # The script searches the target from the right, so an input that repeats the instruction moves the start.
        reverse = [g + r.instruction + r.input for g, r in zip(guesses, rows, strict=True)]
        before = [text[: text.rfind(r.instruction)] for text, r in zip(reverse, rows, strict=True)]
        wholes = [p + r.response for p, r in zip(prompts, rows, strict=True)]
        directs = [r.instruction + r.input for r in rows]
        texts = [*prompts, *guesses, *reverse, *before, *wholes, *directs, *(r.response for r in rows)]
        ids = self._tokenize(texts, special=True, markup=True)  # as the script does

        def count(text: str) -> int:
            return min(len(ids[text]), self.max_length)

        found: list[Encoded] = []
        for i, row in enumerate(rows):
            if not row.response:
                found.append(dict.fromkeys(PASSES, EMPTY_TARGET))
                continue
            sequences = (
                (ids[row.response], len(self.bos), self.max_length - count(prompts[i]) + 1),
                (ids[wholes[i]], count(prompts[i]), self.max_length),
                (ids[directs[i]], len(self.bos), self.max_length - count(guesses[i]) + 1),
                (ids[reverse[i]], count(before[i]), self.max_length),
            )
            found.append({name: _cut(*s) for name, s in zip(PASSES, sequences, strict=True)})
        return found

    def _official_given(self, rows: list[Texts]) -> list[Pass | str]:
        """The pass `response_given_prompt` only."""
        prompts = [templates.TEMPLATES[self.template](r.instruction, r.input) for r in rows]
        wholes = [p + r.response for p, r in zip(prompts, rows, strict=True)]
        ids = self._tokenize([*prompts, *wholes], special=True, markup=True)
        return [
            _cut(ids[whole], min(len(ids[prompt]), self.max_length), self.max_length) if row.response else EMPTY_TARGET
            for row, prompt, whole in zip(rows, prompts, wholes, strict=True)
        ]

    def _tokenize(self, texts: Iterable[str], special: bool, markup: bool) -> dict[str, list[int]]:
        """Ids of every distinct text, tokenized in one call (the Rust tokenizers use all cores).

        `special`: add BOS and other special tokens around the text. `markup`: names of special tokens within a text
        become these tokens.
        """
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return {}
        options = {} if markup else {"split_special_tokens": True}
        encoded = self.tokenizer(distinct, add_special_tokens=special, verbose=False, **options)["input_ids"]
        return dict(zip(distinct, encoded, strict=True))


def _cut(ids: list[int], start: int, cap: int) -> Pass | str:
    """The first `cap` ids, scored from `start` on; the very first token has no context and is never scored."""
    kept, start = ids[:cap], max(start, 1)
    if len(kept) <= start:
        return PROMPT_TOO_LONG if len(ids) > start else NO_SCORED_TOKENS
    return Pass(_array(kept), start, len(kept) < len(ids))


def leading_special_ids(tokenizer) -> tuple[int, ...]:
    """The token ids that the tokenizer puts before a text: usually BOS or nothing."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    special = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    for start in range(len(special) - len(plain) + 1):
        if special[start : start + len(plain)] == plain:
            return tuple(special[:start])
    return ()


def _encodable(text: str) -> bool:
    """False for texts with lone surrogates, which JSON allows and tokenizers refuse."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _array(*parts: Sequence[int]) -> np.ndarray:
    return np.asarray([i for part in parts for i in part], dtype=np.int32)
