"""The same scores the slow way, written from the definitions: one sequence at a time, the model's own loss (`labels=`).

Nothing here is shared with the code under test but the prompt texts, which are written out again.
"""

from __future__ import annotations

import math

import torch

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
GUESS = (
    "Below is the response to an instruction, please guess the corresponding instruction for the given response.\n"
    "{}\nGenerate the instruction for the above response."
)
ALPACA = "Below is an instruction that describes a task"
REQUEST = "Write a response that appropriately completes the request.\n\n### Instruction:\n"


def prompt(template: str, instruction: str, given: str) -> str:
    both = instruction + ("\n" + given if given else "")
    if template == "vicuna":
        return SYSTEM + " USER: " + instruction + ("\nInput:\n" + given if given else "") + " ASSISTANT:"
    if template == "alpaca" and given:
        more = ", paired with an input that provides further context. "
        return ALPACA + more + REQUEST + instruction + "\n\n### Input:\n" + given + "\n\n### Response:"
    if template == "alpaca":
        return ALPACA + ". " + REQUEST + instruction + "\n\n### Response:"
    if template == "wizardlm":
        return both + "\n\n### Response:"
    if template == "chat":
        return "<|user|>\n" + both + "\n<|assistant|>\n"
    assert template == "none"
    return both + "\n"


def loss(model, ids: list[int], start: int, cap: int | None = None) -> tuple[float, int] | None:
    """(mean loss, scored tokens) of ids[start:] given what comes before; None if nothing can be scored."""
    ids = ids[:cap] if cap is not None else ids
    labels = [token if place >= start else -100 for place, token in enumerate(ids)]
    count = sum(label != -100 for label in labels[1:])
    if not count:
        return None
    with torch.no_grad():
        mean = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
    return (mean, count) if math.isfinite(mean) else None


def aligned(model, tokenizer, template: str, instruction: str, given: str, response: str, max_length: int) -> list:
    """[response, response|prompt, instruction, instruction|response] in protocol `aligned`, for ratios."""
    special = tokenizer("a")["input_ids"]
    bos = special[: len(special) - len(tokenizer("a", add_special_tokens=False)["input_ids"])]

    def pair(context: str, target: str) -> list:
        before = ([] if template == "chat" else bos) + tokenizer(
            context, add_special_tokens=False, split_special_tokens=template != "chat"
        )["input_ids"]
        target_ids = tokenizer(target, add_special_tokens=False, split_special_tokens=True)["input_ids"][
            : max(0, max_length - len(before))
        ]
        skip = 0 if bos else 1
        return [
            loss(model, bos + target_ids, len(bos) + skip),
            loss(model, before + target_ids, len(before) + skip),
        ]

    whole = instruction + ("\n" + given if given else "")
    return pair(prompt(template, instruction, given), response) + pair(
        prompt(template, GUESS.format(response), ""), whole
    )


def official(model, tokenizer, template: str, instruction: str, given: str, response: str, max_length: int) -> list:
    """The same four as the authors' script has them."""
    if not response:
        return [None] * 4

    def encode(text: str) -> list[int]:
        return tokenizer(text)["input_ids"][:max_length]

    found = []
    for context, target, searched in (
        (prompt(template, instruction, given), response, response),
        (prompt(template, GUESS.format(response), ""), instruction + given, instruction),
    ):
        room = max_length - len(encode(context)) + 1
        found.append(loss(model, tokenizer(target)["input_ids"], 1, room))
        text = context + target
        start = len(encode(text[: text.rfind(searched)]))
        found.append(loss(model, encode(text), start))
    return found
