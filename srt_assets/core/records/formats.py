"""One row of a file to one instruction-response pair, or the reason why it is none. Texts are kept exactly as read."""

from typing import Any, NamedTuple

# Words that people write into `input` to say that there is none. They stay: changing them would change the record.
SENTINEL_INPUTS = frozenset(
    {"<noinput>", "<no input>", "<no input>.", "<no_input>", "noinput", "no input", "n/a", "none"}
)


class Pair(NamedTuple):
    instruction: str
    input: str
    response: str


class Reject(NamedTuple):
    """`reason` is one of REASONS (or `duplicate`, found by the caller who has seen the other rows)."""

    reason: str


REASONS = (
    "not_an_object",
    "missing_instruction",
    "missing_response",
    "wrong_type",
    "empty_instruction",
    "empty_response",
    "invalid_text",
    "unknown_role",
    "system_prompt",
    "no_reply",
    "multi_turn",
    "duplicate",
)

_USER = {"human", "user"}
_ASSISTANT = {"gpt", "assistant", "chatgpt", "model"}


def detect(row: Any) -> str:
    """The format of a file, told from its first object: sharegpt, messages or alpaca."""
    if isinstance(row, dict) and isinstance(row.get("conversations"), list):
        return "sharegpt"
    if isinstance(row, dict) and isinstance(row.get("messages"), list):
        return "messages"
    return "alpaca"


def to_pair(row: Any, format: str, multi_turn: str) -> Pair | Reject:
    """Read a row as `alpaca`, `sharegpt` or `messages`. `multi_turn`: reject, or take the first_turn."""
    if not isinstance(row, dict):
        return Reject("not_an_object")
    if format == "alpaca":
        pair = _alpaca(row)
    elif format == "sharegpt":
        pair = _turns(row.get("conversations"), "from", "value", multi_turn)
    else:
        pair = _turns(row.get("messages"), "role", "content", multi_turn)
    return pair if isinstance(pair, Reject) else _checked(pair)


def _alpaca(row: dict) -> Pair | Reject:
    if "instruction" not in row:
        return Reject("missing_instruction")
    response = row.get("output", row.get("response"))
    if response is None:
        return Reject("missing_response")
    given = row.get("input")
    texts = (row["instruction"], "" if given is None else given, response)
    return Pair(*texts) if all(isinstance(t, str) for t in texts) else Reject("wrong_type")


def _turns(turns: Any, role_key: str, text_key: str, multi_turn: str) -> Pair | Reject:
    if not isinstance(turns, list) or not all(isinstance(t, dict) for t in turns):
        return Reject("wrong_type")
    roles = [t.get(role_key) for t in turns]
    if "system" in roles:
        return Reject("system_prompt")
    if not turns or roles[0] not in _USER:
        return Reject("missing_instruction" if not turns else "unknown_role")
    if len(turns) < 2:
        return Reject("no_reply")
    if roles[1] not in _ASSISTANT:
        return Reject("unknown_role")
    if len(turns) > 2 and multi_turn == "reject":
        return Reject("multi_turn")
    texts = (turns[0].get(text_key), turns[1].get(text_key))
    if not all(isinstance(t, str) for t in texts):
        return Reject("wrong_type")
    return Pair(texts[0], "", texts[1])


def _checked(pair: Pair) -> Pair | Reject:
    if not pair.instruction.strip():
        return Reject("empty_instruction")
    if not pair.response.strip():
        return Reject("empty_response")
    try:
        "".join(pair).encode()
    except UnicodeEncodeError:  # a lone surrogate: neither Parquet nor a tokenizer can hold it
        return Reject("invalid_text")
    return pair
