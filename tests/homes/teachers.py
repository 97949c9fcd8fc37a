"""What the fake teachers of the homes do: faults for a few records, an empty account, silence."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NO_MARKERS = "Here is what I think of it, without any of the marks that were asked for."


@contextmanager
def fake_teacher(plan: Callable[[dict[str, Any], int], dict[str, Any]]) -> Iterator[str]:
    """A teacher on loopback, which does what `plan` says of a request; gives its address."""
    from fake_openai import FakeOpenAI, Plan

    with FakeOpenAI(lambda body, nth: Plan(**plan(body, nth))) as fake:
        yield fake.base


def moody(body: dict[str, Any], nth: int) -> dict[str, Any]:
    """Good replies, but for a few records, which are told by a word of theirs."""
    shown = body["messages"][1]["content"]
    again = len(body["messages"]) > 2
    asks_for_instruction = "[New Instruction]" in shown
    if "padlock" in shown and asks_for_instruction:
        return {"fault": "refusal"}
    if "hedgehog" in shown and asks_for_instruction:
        return {"text": "I'm sorry, but I cannot help with that."}
    if "sourdough" in shown and asks_for_instruction and not again:
        return {"text": NO_MARKERS}
    if "chessboard" in shown and not asks_for_instruction:
        return {"text": NO_MARKERS}
    if "volcano" in shown and not asks_for_instruction:
        return {"text": "It is short.\n[Better Answer] Deep under the mountain, molten rock", "finish_reason": "length"}
    if "cactus" in shown and not asks_for_instruction and not again:
        return {"fault": "empty"}
    if "lighthouse" in shown and asks_for_instruction and nth == 0:
        return {"fault": "500"}
    return {}


def poor(replies: int) -> Callable[[dict[str, Any], int], dict[str, Any]]:
    """So many replies, then the account is empty."""
    left = replies

    def plan(body: dict[str, Any], nth: int) -> dict[str, Any]:
        nonlocal left
        left -= 1
        error = {"message": "You exceeded your current quota.", "type": "insufficient_quota"}
        return {} if left >= 0 else {"fault": "429", "error": error | {"code": "insufficient_quota"}}

    return plan


def silent_after(replies: int) -> Callable[[dict[str, Any], int], dict[str, Any]]:
    """So many replies, the first of them unreadable, then nothing any more; its correction gets none either."""
    left = replies

    def plan(body: dict[str, Any], nth: int) -> dict[str, Any]:
        nonlocal left
        if left == 0 or len(body["messages"]) > 2:
            return {"latency_s": 3600.0}
        left -= 1
        return {"text": NO_MARKERS} if left == replies - 1 else {}

    return plan
