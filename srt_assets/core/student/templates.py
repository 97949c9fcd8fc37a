"""The prompt texts a student sees, as plain strings: scoring and training both take them from here and nowhere else.

Nothing is stripped and no prompt ends with a space, because a space there would merge with the first word of the
target in most tokenizers. Texts of `vicuna`, `alpaca` and `wizardlm` are those of the authors' scoring script.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from srt_assets.core.errors import UserError
from srt_assets.core.student.rendering import Renderer

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

# What every chat template takes for today.
_DAY = datetime(2024, 7, 26)

Render = Callable[[str, str], str]
RenderAll = Callable[[Sequence[tuple[str, str]]], list[str]]


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
    """The instruction as the student is asked to recover it in protocol `aligned` (x of r-IFD): input on a new line."""
    return f"{instruction}\n{input}" if input else instruction


def guess(response: str) -> str:
    """The user's turn of the r-IFD prompt (the paper's y'): guess the instruction this response answers."""
    return f"{GUESS}{response}{GUESS_END}"


def one_by_one(render: Render) -> RenderAll:
    """A template for many pairs at once."""
    return lambda pairs: [render(*pair) for pair in pairs]


def chat(tokenizer) -> RenderAll:
    """The tokenizer's own chat template as prompts: one user turn each, ready for the assistant's.

    UserError names the student if it has none, or none of that name; so does what is given back, if the template fails.
    """
    student = Path(tokenizer.name_or_path).name
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        remedy = "set student.template to vicuna, alpaca, wizardlm or none"
        raise UserError(f"the student {student} has no chat template to use: {error}", remedy) from None
    # Some templates print today's date: the same text must give the same score tomorrow. Those that ask for the time
    # are told a day of ours, and so are those that are given the date.
    renderer = Renderer(template, tokenizer.special_tokens_map, student, _DAY.isoformat())

    def render(pairs: Sequence[tuple[str, str]]) -> list[str]:
        turns = [[{"role": "user", "content": join(*pair)}] for pair in pairs]
        return renderer.render(turns, add_generation_prompt=True, date_string=f"{_DAY:%d %b %Y}")

    return render
