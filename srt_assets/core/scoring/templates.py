"""The prompt texts a student sees, as plain strings. Scoring and training both take them from here.

Nothing is stripped and no prompt ends with a space, because a space there would merge with the first word of the
target in most tokenizers. Texts of `vicuna`, `alpaca` and `wizardlm` are those of the authors' scoring script.
"""

from collections.abc import Callable

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
GUESS = "Below is the response to an instruction, please guess the corresponding instruction for the given response.\n"
GUESS_END = "\nGenerate the instruction for the above response."

Render = Callable[[str, str], str]


def _vicuna(instruction: str, input: str) -> str:
    user = f"{instruction}\nInput:\n{input}" if input else instruction
    return f"{VICUNA_SYSTEM} USER: {user} ASSISTANT:"


def _alpaca(instruction: str, input: str) -> str:
    if input:
        return f"{ALPACA_WITH_INPUT}### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
    return f"{ALPACA_WITHOUT_INPUT}### Instruction:\n{instruction}\n\n### Response:"


TEMPLATES: dict[str, Render] = {
    "vicuna": _vicuna,
    "alpaca": _alpaca,
    "wizardlm": lambda instruction, input: f"{join(instruction, input)}\n\n### Response:",
    "none": lambda instruction, input: f"{join(instruction, input)}\n",
}
"""Instruction and input to prompt text. `chat` is not here: it is the tokenizer's own and needs one."""


def join(instruction: str, input: str) -> str:
    """Instruction and input as one text, input on a new line: the target x of r-IFD in the protocol `aligned`."""
    return f"{instruction}\n{input}" if input else instruction


def guess(response: str) -> str:
    """The user's turn of the r-IFD prompt (the paper's y'): guess the instruction this response answers."""
    return f"{GUESS}{response}{GUESS_END}"
