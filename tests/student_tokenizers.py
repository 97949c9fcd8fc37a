"""Tokenizers that differ where scoring could go wrong: BOS or none, prefix spaces, word pieces, real vocabularies.

The real ones are files inside the wheel `mistral-common` (SentencePiece and tekken), which the extra `dev` brings;
where it is not installed their cases are skipped and say so.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from tiny_student import CORPUS, make_tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]
# A vocabulary of word pieces, one with control tokens, and one of byte pairs.
REAL = ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3", "tekken_240911.json"]
TOKENIZERS = ["bytes", "bytes_bos", "metaspace_bos", "prefix_space", *REAL]


@cache
def tokenizer_named(name: str):
    if name in ("bytes", "bytes_bos"):
        return make_tiny_tokenizer(bos=name == "bytes_bos")
    if name in REAL:
        folder = Path(
            pytest.importorskip("mistral_common", reason="not installed: pip install -e '.[dev]'").__path__[0]
        )
        return (_tekken if name.endswith(".json") else _sentencepiece)(folder / "data" / name)
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if name == "metaspace_bos":  # as Llama 2: a dummy space before every text, BOS
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        core.decoder = decoders.Metaspace(prepend_scheme="always")
        alphabet: list[str] = []
    else:  # as older GPT-2 set-ups: add_prefix_space
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    fallback = [f"<0x{byte:02X}>" for byte in range(256)] if name == "metaspace_bos" else []
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*SPECIAL, *fallback], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    if name == "metaspace_bos":
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


class _Plain:
    """A tokenizer that is a function text -> ids, with BOS, as much as the encoder asks of one."""

    chat_template = None

    def __init__(self, encode, bos: int, eos: int) -> None:
        self._encode, self._bos, self.eos_token_id = encode, [bos], eos

    def __call__(self, text, add_special_tokens: bool = True, **_: object) -> dict:
        if isinstance(text, list):
            return {"input_ids": [self(one, add_special_tokens)["input_ids"] for one in text]}
        return {"input_ids": (self._bos if add_special_tokens else []) + self._encode(text)}


def _sentencepiece(path: Path) -> _Plain:
    pytest.importorskip("sentencepiece", reason="not installed: pip install -e '.[dev]'")
    from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

    inner = SentencePieceTokenizer(path)
    return _Plain(lambda text: inner.encode(text, bos=False, eos=False), inner.bos_id, inner.eos_id)


def _tekken(path: Path) -> _Plain:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    inner = Tekkenizer.from_file(path)
    return _Plain(lambda text: inner.encode(text, bos=False, eos=False), inner.bos_id, inner.eos_id)
