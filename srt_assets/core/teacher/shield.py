"""Replaces marker names in user data, so that a record cannot leave its block of the prompt.

`[End]` in a record becomes `⟦End⟧` in the prompt, and `[End]` again in the teacher's text. A record that contains such
markers stays intact, but cannot close its block, open `[System]`, or imitate a reply.
"""

import re

_BLOCKS = ("The Start of Input", "The End of Input", "The Start of Answer", "The End of Answer")
FRAME_NAMES = ("Instruction", *_BLOCKS, "System")
REPLY_NAMES = ("New Instruction", "New Answer", "Better Answer", "End")


def _names(names: tuple[str, ...]) -> str:
    return "|".join(r"\s+".join(map(re.escape, name.split())) for name in names)


_BRACKETED = re.compile(rf"\[(\s*(?:{_names(FRAME_NAMES + REPLY_NAMES)})\s*)\]", re.IGNORECASE)
_SHIELDED = re.compile(rf"⟦(\s*(?:{_names(FRAME_NAMES + REPLY_NAMES)})\s*)⟧", re.IGNORECASE)
FRAME_MARKER = re.compile(rf"\[\s*(?:{_names(FRAME_NAMES)})\s*\]", re.IGNORECASE)


def shield(text: str) -> str:
    """The text with every bracketed marker name replaced; other brackets stay."""
    return _BRACKETED.sub(r"⟦\1⟧", text)


def unshield(text: str) -> str:
    """Undo `shield` in a text that the teacher wrote."""
    return _SHIELDED.sub(r"[\1]", text)
