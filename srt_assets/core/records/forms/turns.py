"""Conversations: lists of messages, with any of the known keys, to one question and its answer.

Known roles, content parts and message fields are lists. Anything else is rejected or noted under its name.
"""

import json
import re
from itertools import pairwise
from typing import Any

from srt_assets.core.records.files.json_types import type_of
from srt_assets.core.records.forms import fields
from srt_assets.core.records.forms.result import Pair, Read, Reject, as_text, is_filled, named
from srt_assets.core.records.forms.rules import TEXT_KEYS, Rules

_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_OTHER_PARTS = {
    **dict.fromkeys(("thinking", "reasoning", "redacted_thinking", "thought"), "thoughts"),
    **dict.fromkeys(("tool_use", "tool_result", "tool_call", "tool_calls", "function_call", "function"), "tool_calls"),
    **dict.fromkeys(("image", "image_url", "input_image", "audio", "audio_url", "input_audio"), "multimodal"),
    **dict.fromkeys(("video", "video_url", "file", "input_file", "document"), "multimodal"),
    **dict.fromkeys(("tools",), "tools"),
    **dict.fromkeys(("refusal",), "refusal"),
}


def looks_like_turns(value: Any) -> bool:
    """Whether this may be a conversation: a list, or what a Parquet or CSV column has for it (`messages_of`)."""
    if isinstance(value, str):
        text = value.strip()
        return text[:1] == "[" and text[1:].lstrip() != "]"
    return isinstance(value, list | dict)


def messages_of(value: Any, where: str) -> list[Any] | Reject:
    """The messages of a conversation: a list, JSON text, or an object of lists instead of a list of objects."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return Reject("wrong_type", f"{where} is text that is not JSON")
    if isinstance(value, dict):
        columns = list(value.values())
        if not columns or not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
            return [value]
        value = [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if not isinstance(value, list):
        return Reject("wrong_type", f"{where} is {type_of(value)}")
    return value


# The beginning of a list of messages written as text, as JSON or as Python prints it.
_WRITTEN = re.compile(r"""\s*\[\s*\{\s*['"](?:role|from|content|value)['"]\s*:""")


def holds_turns(value: Any) -> bool:
    """Whether a field that usually holds text holds messages: as a list, an object, or written as text."""
    return isinstance(value, list | dict) or (isinstance(value, str) and _WRITTEN.match(value) is not None)


def listed(value: Any) -> Any:
    """A list that may be JSON text; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def pair_of(turns: list[Any], rules: Rules, read: Read, where: str) -> Pair | Reject:
    """The question and its answer, or a Reject. Other fields of the messages reject the conversation or are noted."""
    kinds: list[str] = []
    kept: list[dict[Any, Any]] = []
    for turn in turns:
        if not isinstance(turn, dict):
            return Reject("wrong_type", f"{where}: a message is {type_of(turn)}")
        kind = _kind(turn, rules)
        if kind == "system":
            if any(_is_said(turn.get(key)) for key in rules.text_keys):
                return Reject("system_prompt", where)
            for key, value in turn.items():
                if (
                    key not in rules.role_keys
                    and key not in rules.text_keys
                    and (why := _beside(key, value, False, read, where))
                ):
                    return why
            continue
        kinds.append(kind)
        kept.append(turn)
    if why := _of_roles(kinds, kept, rules, where):
        return why
    texts = []
    for turn, kind in zip(kept[:2], kinds, strict=False):
        text = _text(turn, kind == "assistant", rules, read, where)
        if isinstance(text, Reject):
            return text
        texts.append(text)
    return Pair(texts[0], "", texts[1])


def answer_of(value: Any, rules: Rules, read: Read, where: str) -> str | Reject:
    """The text of an answer in a field of its own: a text, a message, or a list that ends with the message."""
    if isinstance(value, str) and not holds_turns(value):
        return value
    turns = messages_of(value, where)
    if isinstance(turns, Reject):
        return turns
    if not turns or not isinstance(turns[-1], dict) or _kind(turns[-1], rules) != "assistant":
        return Reject("wrong_type", f"{where} does not end with an answer")
    return _text(turns[-1], True, rules, read, where)


def answers_of(value: Any, rules: Rules, read: Read, where: str) -> list[str] | Reject:
    """As `answer_of`, also of a list of texts, each of which is an answer."""
    value = listed(value)
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return [text for text in value if is_filled(text)]
    text = answer_of(value, rules, read, where)
    return text if isinstance(text, Reject) else [text]


def _is_said(value: Any) -> bool:
    """Whether the content of a message has any text or other part; blank text parts do not count."""
    if not isinstance(value, list):
        return is_filled(value)
    texts = [part for part in value if isinstance(part, dict) and part.get("type") in ("text", "input_text")]
    return len(texts) < len(value) or any(is_filled(part.get(key)) for part in texts for key in ("text", "value"))


def _of_roles(kinds: list[str], turns: list[dict[Any, Any]], rules: Rules, where: str) -> Reject | None:
    """Why messages with these roles, in this order, are not one question and its answer; None if they are."""
    if not kinds:
        return Reject("missing_instruction", f"{where} is empty")
    first_only = rules.multi_turn == "first_turn"
    for kind, turn in zip(kinds[:2] if first_only else kinds, turns, strict=False):
        if kind == "tool":
            return Reject("tool_calls", f"{where}: {named(_role(turn, rules))}")
        if kind == "":
            role = _role(turn, rules)
            return Reject("unknown_role", f"{where}: {named(role) if is_filled(role) else 'none'}")
    if kinds[0] != "user":
        return Reject("role_order", f"{where} begins with the assistant")
    if len(kinds) < 2:
        return Reject("no_reply", where)
    if kinds[1] != "assistant":
        return Reject("role_order", f"{where}: two turns of the user")
    if len(kinds) > 2 and not first_only:
        if kinds[-1] == "user":
            return Reject("no_reply", f"{where} ends with the user")
        if any(a == b for a, b in pairwise(kinds)):
            return Reject("role_order", f"{where}: two turns of the {kinds[-1]}")
        return Reject("multi_turn", f"{len(kinds)} turns")
    return None


def _role(turn: dict[Any, Any], rules: Rules) -> Any:
    for key in rules.role_keys:
        if (role := turn.get(key)) is not None:
            return role
    return None


def _kind(turn: dict[Any, Any], rules: Rules) -> str:
    role = _role(turn, rules)
    if not isinstance(role, str):
        return ""
    kind = rules.roles.get(role)
    return rules.roles.get(role.strip().lower(), "") if kind is None else kind


def _text(turn: dict[Any, Any], is_answer: bool, rules: Rules, read: Read, where: str) -> str | Reject:
    """The text of one message. Its other fields reject it, or are noted."""
    value: Any = None
    text_key = ""
    for key, given in turn.items():
        if key in rules.role_keys:
            continue
        if key in rules.text_keys:
            if not is_filled(given):
                value = given if value is None else value
            elif not text_key:
                value, text_key = given, key
            elif given != value:
                return Reject("ambiguous_form", f"{where}[].{text_key} and {where}[].{key}")
        elif why := _beside(key, given, is_answer, read, where):
            return why
    if isinstance(value, str):
        return value
    if value is None:
        return Reject("missing_response" if is_answer else "missing_instruction", f"{where}: a message has no text")
    if isinstance(value, dict) and "type" in value:  # one part without a list around it
        value = [value]
    if isinstance(value, list):
        return _joined(value, is_answer, read, f"{where}[].{text_key or TEXT_KEYS[0]}")
    text = as_text(value, read, f"{where}[].{text_key}")
    return Reject("wrong_type", f"{where}[].{text_key} is {type_of(value)}") if text is None else text


def _beside(key: Any, value: Any, is_answer: bool, read: Read, where: str) -> Reject | None:
    """Decides about a field of a message, or of a content part, that is not its text."""
    if not is_answer and fields.plain(str(key)) in fields.OF_ANSWER_ONLY:
        return None
    return fields.account(read, key, value, fields.OF_MESSAGE, f"{where}[].")


def _joined(parts: list[Any], is_answer: bool, read: Read, where: str) -> str | Reject:
    texts = []
    for part in parts:
        if not isinstance(part, dict):
            return Reject("unknown_part", f"{where}[]: {type_of(part)}")
        kind = part.get("type")
        if not isinstance(kind, str) or kind not in _TEXT_PARTS:
            reason = _OTHER_PARTS.get(kind, "unknown_part") if isinstance(kind, str) else "unknown_part"
            return Reject(reason, f"{where}[]: {named(kind)}")
        given = [part[key] for key in ("text", "value") if isinstance(part.get(key), str)]
        if not given:
            return Reject("wrong_type", f"{where}[]: a text part without text")
        if len(set(given)) > 1:
            return Reject("ambiguous_form", f"{where}[].text and {where}[].value")
        texts.append(given[0])
        for key, value in part.items():
            if key not in ("type", "text", "value") and (why := _beside(key, value, is_answer, read, where)):
                return why
    return "".join(texts)
