"""A request to the teacher and its content address (key). Endpoint, time and order of calls do not belong here."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from srt_assets.core import packaged
from srt_assets.core.hashing import content_key, digest, file_sha256
from srt_assets.core.teacher import grammar, prompts
from srt_assets.core.teacher.prompts import Form, Kind, Message
from srt_assets.settings import Teacher

LOCAL = "local"
PURPOSES: dict[str, Kind] = {
    "reflect_instruction": "instruction",
    "reflect_response": "response",
    "reflect_response_of_reflected": "response",
}
_CORRECTION = "_correction"
# Without these a model this small repeats itself under greedy decoding. The reply still depends on the request alone.
LOCAL_SAMPLING = {"repeat_penalty": 1.1, "repeat_last_n": 64}


@dataclass(frozen=True, slots=True)
class Source:
    """One pair for the teacher to reflect on. `purpose` is a key of PURPOSES."""

    sample_id: str
    purpose: str
    instruction: str
    input: str
    response: str

    @property
    def kind(self) -> Kind:
        return PURPOSES[self.purpose]

    @property
    def texts(self) -> tuple[str, str, str]:
        return self.instruction, self.input, self.response


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `shape` constrains the form of the reply: a response_format, the text of a grammar, or None.

    `facts` are columns of the ledger. They tell what has changed when a key is not found. Apart from `prompt_version`
    they all follow from the user's settings and texts: a call with equal facts and another key comes from another
    version of the program (`known.Found`).
    """

    key: str
    sample_id: str
    purpose: str
    messages: list[Message]
    shape: dict[str, Any] | str | None
    facts: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        """UTF-8 bytes of all messages, an upper bound of the tokens of any byte-level tokenizer."""
        return sum(len(m["content"].encode("utf-8", "replace")) for m in self.messages)


def call_key(messages: list[Message], model: str, sampling: dict[str, Any], shape: dict[str, Any] | str | None) -> str:
    """Content address (64 hex digits) of messages, model, sampling and schema: everything that can change the reply.

    It does not depend on `max_tokens` (see `known`), api_base, run, path, order, concurrency or key order in the
    schema.
    """
    return digest(messages=messages, model=model, sampling=sampling, shape=shape)


class Prompter:
    """Turns sources into calls under one set of teacher settings."""

    def __init__(self, teacher: Teacher) -> None:
        self.local = teacher.model == LOCAL
        usual: Form = "grammar" if self.local else "markers"
        self.form: Form = usual if teacher.reply_format == "auto" else teacher.reply_format
        self.identity = model_identity(teacher.model)
        self.good_finish_reasons = teacher.good_finish_reasons
        # float(): 0 and 0.0 in the settings are the same temperature.
        self.sampling: dict[str, Any] = {"temperature": float(teacher.temperature)} | teacher.sampling
        # The facts that are the same for all calls under these settings.
        self.facts: dict[str, Any] = {
            "prompt_version": prompts.PROMPT_VERSION,
            "model_id": self.identity,
            "temperature": self.sampling["temperature"],
            "reply_format": self.form,
            "parameters": json.dumps(teacher.sampling, sort_keys=True) if teacher.sampling else None,
        }
        if self.local:
            self.sampling |= LOCAL_SAMPLING

    def call(self, source: Source, key: str = "") -> Call:
        """The call for a pair. `key`: its key, if already computed."""
        messages = prompts.messages(source.kind, self.form, *source.texts, brief=self.local)
        return self._call(source, source.purpose, messages, key)

    def correction(self, source: Source, before: Call, reply: str, status: str, key: str = "") -> Call:
        """The correction turn after a reply that could not be parsed (`parse.CORRECTABLE`)."""
        messages = prompts.correction(before.messages, reply, status, source.kind, self.form, self.local)
        return self._call(source, source.purpose + _CORRECTION, messages, key, reply)

    def _call(self, source: Source, purpose: str, messages: list[Message], key: str, reply: str = "") -> Call:
        shape: dict[str, Any] | str | None = None
        if self.form == "json_schema":
            shape = grammar.json_schema(source.kind)
        elif self.form == "grammar":
            shape = grammar.gbnf(source.kind, bounded=self.local)
        key = key or call_key(messages, self.identity, self.sampling, shape)
        source_key = content_key(*source.texts) if not reply else digest(texts=source.texts, reply=reply)[:16]
        facts = {**self.facts, "source_key": source_key}
        return Call(key, source.sample_id, purpose, messages, shape, facts)


def model_identity(model: str) -> str:
    """The model's identity in the key: the LiteLLM string or, for `local`, the hash of the packaged GGUF file."""
    if model != LOCAL:
        return model
    path = packaged.gguf()
    return f"gguf:{_hashed(path, path.stat().st_size, path.stat().st_mtime_ns)}"


@lru_cache(maxsize=4)
def _hashed(path: Path, size: int, modified_ns: int) -> str:
    return file_sha256(path)
