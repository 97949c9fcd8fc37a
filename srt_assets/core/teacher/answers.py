"""Turns a provider's answer, in any of the known shapes, into an `Answer`: text, thoughts, finish reason, usage.

An answer that cannot be read raises `Unreadable`. That is final: the answer is paid for, and asking again would give
the same. Whether the text is usable is decided in `parse.py`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from srt_assets.core.masking import redact
from srt_assets.core.teacher import ends
from srt_assets.core.teacher.failures import Failure, Unreadable, of_body
from srt_assets.core.teacher.thoughts import without_thoughts

# Kinds of parts in a content list: reply, thoughts, parts without text.
_TEXT_PARTS = {"text", "output_text"}
_THOUGHT_PARTS = {"thinking", "redacted_thinking", "reasoning", "reasoning_text", "reasoning_content", "thought"}
_EMPTY_PARTS = {"reference", "citation", "citations"}
_REFUSAL_PART = "refusal"
# Message fields in which providers send thoughts separately from the reply.
_THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking", "thoughts", "thinking_blocks", "reasoning_details")
# Names of the finish reason in answers of Anthropic, Gemini, Bedrock, Ollama and Titan.
_REASONS = ("finish_reason", "finishReason", "stop_reason", "stopReason", "done_reason", "completionReason")
THOUGHTS_USED_UP = "the model's thoughts used up the tokens that the reply was allowed"
_MAX_TOKENS = 100_000_000  # larger counts are errors of the provider; beyond 64 bits they would break the ledger


@dataclass(frozen=True, slots=True)
class Answer:
    """A provider's answer. `finish_reason` is a word of `ends`; `native_finish_reason` the provider's ('' for none).

    Token counts are None when the provider's usage is missing or impossible; `cached_tokens` are part of
    `prompt_tokens`, `reasoning_tokens` of `completion_tokens`.
    """

    text: str | None
    finish_reason: str
    native_finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    latency_s: float
    thoughts: str | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None

    @property
    def note(self) -> str | None:
        """What is wrong with the finish reason; None if nothing is."""
        if self.finish_reason == ends.UNKNOWN:
            return ends.unknown(self.native_finish_reason)
        if self.finish_reason != ends.LENGTH:
            return None
        thought = bool(self.thoughts or self.reasoning_tokens) or without_thoughts(self.text or "") != (self.text or "")
        if thought and not without_thoughts(self.text or "").strip():
            spent = f" ({self.reasoning_tokens} of them)" if self.reasoning_tokens else ""
            return f"{THOUGHTS_USED_UP}{spent}: raise teacher.max_tokens, or set a lower teacher.reasoning_effort"
        return "the reply was cut at its last token: raise teacher.max_tokens"

    @property
    def columns(self) -> dict[str, Any]:
        """The ledger's columns for this answer, without cost and latency."""
        names = ("finish_reason", "native_finish_reason", "prompt_tokens", "completion_tokens", "thoughts")
        more = ("cached_tokens", "reasoning_tokens")
        return {"status": "ok", "reply": self.text, "error": self.note} | {n: getattr(self, n) for n in names + more}


def read_body(body: dict[str, Any], latency_s: float = 0.0) -> Answer:
    """Read an answer in OpenAI's form, as JSON. Unreadable if it holds no reply or a reply of an unknown kind."""
    usage = body.get("usage")
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    error = body.get("error") or (choice.get("error") if isinstance(choice, dict) else None)
    if error:
        raise Unreadable(of_body(error))
    if not isinstance(choice, dict):
        raise _unreadable("it holds no reply (no choices)", body)
    message = choice.get("message")
    if message is None and isinstance(choice.get("text"), str):
        message = {"content": choice["text"]}
    if not isinstance(message, dict):
        raise _unreadable("its message is missing", body)
    try:
        text, thoughts, refusal = _content(message.get("content"))
    except ValueError as why:
        raise _unreadable(str(why), body) from None
    apart = [message.get(name) for name in _THOUGHT_FIELDS]
    thoughts = [*thoughts, *_texts([value for value in apart if value])]
    # OpenRouter sends the provider's finish reason beside its own: both must be good.
    reasons = [choice.get("native_finish_reason"), choice.get("finish_reason"), _details(choice)]
    said = [reason for reason in map(ends.word, reasons) if reason]
    native = next((reason for reason in said if ends.end_of(reason) != ends.STOP), said[0] if said else "")
    return _answer(text, native, refusal or message.get("refusal"), usage, latency_s, thoughts)


def read_response(response: Any, raw: Any, latency_s: float) -> Answer:
    """Read an answer that LiteLLM has converted to OpenAI's form. `raw`: the provider's original answer, if known."""
    choices = response.choices or []
    if not choices:
        raise _unreadable("it holds no reply (no choices)", response.model_dump() if raw is None else raw)
    message = choices[0].message
    try:
        text, thoughts, refusal = _content(message.content if message else None)
    except ValueError as why:
        raise _unreadable(str(why), response.model_dump() if raw is None else raw) from None
    apart = getattr(message, _THOUGHT_FIELDS[0], None)
    own = (getattr(choices[0], "provider_specific_fields", None) or {}).get("native_finish_reason")
    # LiteLLM says "stop" for unknown and missing finish reasons, so the provider's own word is used if there is one.
    native = own if own is not None else next(_reasons(raw), "") if raw is not None else choices[0].finish_reason
    refusal = refusal or (getattr(message, "provider_specific_fields", None) or {}).get("refusal")
    return _answer(text, native, refusal, getattr(response, "usage", None), latency_s, [*thoughts, *_texts(apart)])


def _answer(text: str | None, native: Any, refusal: Any, usage: Any, latency_s: float, thoughts: list[str]) -> Answer:
    reason = ends.word(native)
    end = ends.CONTENT_FILTER if text is None and refusal else ends.end_of(reason)
    prompt, completion = (_count(_get(usage, name)) for name in ("prompt_tokens", "completion_tokens"))
    cached = _count(_get(_get(usage, "prompt_tokens_details"), "cached_tokens"))
    reasoning = _count(_get(_get(usage, "completion_tokens_details"), "reasoning_tokens"))
    if reasoning and completion and reasoning > completion:  # a provider that counts thoughts beside the reply
        completion += reasoning
    return Answer(
        text=_clean(text),
        finish_reason=end,
        native_finish_reason=reason,
        prompt_tokens=prompt,
        completion_tokens=completion,
        latency_s=round(latency_s, 4),
        thoughts=_clean("\n".join(thoughts)) or None,
        cached_tokens=cached if cached and prompt and cached <= prompt else None,
        reasoning_tokens=reasoning,
    )


def _unreadable(why: str, body: Any) -> Unreadable:
    usage = _get(body, "usage")
    billed = (_count(_get(usage, "prompt_tokens")), _count(_get(usage, "completion_tokens")))
    message = redact(f"the teacher's reply cannot be read: {why}")
    reply = _clean(json.dumps(body, ensure_ascii=False, default=str))
    return Unreadable(Failure("record", "unreadable_reply", "Unreadable", message, billed=billed, reply=reply))


def _content(content: Any) -> tuple[str | None, list[str], str | None]:
    """Text, thoughts and refusal of a message's content, which is None, a text, a part or a list of parts.

    ValueError for a part of an unknown kind.
    """
    if content is None or isinstance(content, str):
        return content, [], None
    texts: list[str] = []
    thoughts: list[str] = []
    refusal: str | None = None
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise ValueError(f"its content is of the type {type(part).__name__}")
        kind = part.get("type") or ("text" if isinstance(part.get("text"), str) else "")
        if kind in _THOUGHT_PARTS or part.get("thought") is True:
            thoughts += _texts(part)
        elif kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == _REFUSAL_PART:
            refusal = str(part.get("refusal") or part.get("text") or "refused")
        elif kind not in _EMPTY_PARTS:
            raise ValueError(f"a part of its content is of the kind {ends.word(kind)!r}")
    return "".join(texts) if texts else None, thoughts, refusal


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested parts, in order, without kinds, ids and signatures."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for name in ("text", "thinking", "reasoning", "summary", "content"):
            yield from _texts(value.get(name))


def _details(choice: dict[str, Any]) -> Any:
    details = choice.get("finish_details")
    return details.get("type") if isinstance(details, dict) else details


def _reasons(raw: Any, depth: int = 0) -> Iterator[Any]:
    """The finish reasons in an answer of unknown form, the outermost first."""
    if isinstance(raw, dict):
        yield from (raw[name] for name in _REASONS if raw.get(name) and not isinstance(raw[name], dict | list))
        details = raw.get("incomplete_details")
        if "output" in raw and isinstance(raw.get("status"), str):  # OpenAI Responses
            yield (details.get("reason") if isinstance(details, dict) else None) or raw["status"]
    inner = raw.values() if isinstance(raw, dict) else raw if isinstance(raw, list) else ()
    if depth < 4:
        for value in inner:
            yield from _reasons(value, depth + 1)


def _get(facts: Any, name: str) -> Any:
    return facts.get(name) if isinstance(facts, dict) else getattr(facts, name, None)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MAX_TOKENS else None


def _clean(text: str | None) -> str | None:
    # Lone surrogates cannot be written to a file.
    return None if text is None else text.encode("utf-8", "replace").decode()


def as_json(sent: list[Any]) -> Any:
    """The last original answer that LiteLLM passed to the logger, as JSON; None if there is none or it is no JSON."""
    raw = sent[-1] if sent else None
    if not isinstance(raw, str):
        return raw if isinstance(raw, dict | list) else None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None
