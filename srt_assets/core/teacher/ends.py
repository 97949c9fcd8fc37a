"""Finish reasons of all providers: which ones mean that a reply is complete, cut or filtered.

Only listed words are good: a word in no table here is `unknown`, and its reply is never used. Reading the word from a
provider's answer is in `answers.py`; parsing the reply is in `parse.py`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from srt_assets.core.errors import UserError

# The reply is complete. LiteLLM (`core_helpers._FINISH_REASON_MAP`) also maps words for errors and unknown words to
# "stop"; those are left out here.
WHOLE = {
    "OpenAI, and servers that speak its protocol": ("stop",),
    "OpenAI Responses": ("completed",),
    "Anthropic, Bedrock, Snowflake": ("end_turn", "stop_sequence"),
    "Gemini, Vertex AI": ("STOP",),
    "Cohere, Oracle": ("COMPLETE", "STOP_SEQUENCE"),
    "Hugging Face, Together AI, watsonx, Predibase": ("eos", "eos_token", "stop_sequence"),
    "Amazon Titan": ("FINISH", "FINISHED"),
    "AI21": ("endoftext",),
    "Aleph Alpha": ("end_of_text",),
}
# The reply was cut at its token limit.
CUT = {
    "OpenAI, and servers that speak its protocol": ("length",),
    "OpenAI Responses": ("max_output_tokens",),
    "Anthropic, Bedrock, Snowflake": ("max_tokens", "model_context_window_exceeded"),
    "Gemini, Vertex AI": ("MAX_TOKENS",),
    "Mistral": ("model_length",),
    "Cohere": ("ERROR_LIMIT",),
    "Hugging Face, Together AI": ("max_new_tokens", "max_length"),
    "watsonx": ("token_limit",),
    "Aleph Alpha": ("maximum_tokens",),
}
# A content filter withheld the reply.
FILTERED = {
    "OpenAI, and servers that speak its protocol": ("content_filter", "content_filtered"),
    "Anthropic, Bedrock": ("refusal", "guardrail_intervened"),
    "Gemini, Vertex AI": ("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR"),
    "Cohere": ("ERROR_TOXIC",),
    "Zhipu, GigaChat": ("sensitive", "blacklist"),
}

# The values of the ledger's column `finish_reason`.
STOP, LENGTH, CONTENT_FILTER, UNKNOWN = "stop", "length", "content_filter", "unknown"
_TABLES = {STOP: WHOLE, LENGTH: CUT, CONTENT_FILTER: FILTERED}
_KNOWN = {
    word.casefold(): end for end, table in _TABLES.items() for of_provider in table.values() for word in of_provider
}
# A run stops after this many replies in a row with the same unknown word, because it pays for unusable replies.
UNKNOWN_IN_A_ROW = 20
_WORD_CHARS = 60


def end_of(native: str) -> str:
    """STOP, LENGTH, CONTENT_FILTER or UNKNOWN for a provider's own word ('' if it gave none)."""
    return _KNOWN.get(native.casefold(), UNKNOWN)


def judged(finish_reason: str | None, native: str | None, good: Iterable[str]) -> str | None:
    """The finish reason of a ledger row; an unknown one is STOP if its word is in `good` (from the settings).

    `native` is None in rows of older programs, whose `finish_reason` does not change.
    """
    if finish_reason == UNKNOWN and native is not None and native.casefold() in {word.casefold() for word in good}:
        return STOP
    return finish_reason


@dataclass
class Streak:
    """Counts replies in a row that ended with the same unknown word. `good`: words that the settings add."""

    good: tuple[str, ...]
    word: str = ""
    count: int = 0

    def add(self, finish_reason: str, native: str) -> None:
        """Count one reply. UserError if it is the UNKNOWN_IN_A_ROWth in a row with the same unknown word."""
        if judged(finish_reason, native, self.good) != UNKNOWN:
            self.count = 0
            return
        self.count = self.count + 1 if native == self.word else 1
        self.word = native
        if self.count >= UNKNOWN_IN_A_ROW:
            raise UserError(
                f"none of the teacher's last {self.count} replies is taken: each ended {_how(native)}",
                "read some (srt sql \"SELECT reply FROM teacher_calls WHERE finish_reason = 'unknown'\"); if they are "
                f"whole, set {remedy(native)} and run again: nothing is paid twice",
            )


def word(value: Any) -> str:
    """A finish reason of any type as one line of text; '' for none."""
    if value is None or value is False or value == "":
        return ""
    text = value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
    plain = "".join(char if char.isprintable() else " " for char in text.encode("utf-8", "replace").decode())
    return " ".join(plain.split())[:_WORD_CHARS]


def unknown(native: str) -> str:
    """The message about a reply with this unknown finish reason, with the setting that accepts it."""
    return f"the reply ended {_how(native)}; if it is whole, set {remedy(native)}"


def _how(native: str) -> str:
    known = "which is not known to be a good end"
    return f"with the finish reason {native!r}, {known}" if native else "without a finish reason"


def remedy(native: str) -> str:
    """The line of srt.toml that accepts this finish reason."""
    return f"teacher.good_finish_reasons = [{json.dumps(native, ensure_ascii=False)}]"
