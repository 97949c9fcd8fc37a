"""Keeps user data inside its block of the prompt: bracketed names that mean something there are written otherwise.

`[End]` in a record becomes `⟦End⟧` on the way to the teacher and `[End]` again in what the teacher wrote, so a record
about such markers survives and none can close its block, open `[System]`, or pretend to be a reply.
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
    """The text with every bracketed marker name out of harm's way; other brackets stay."""
    return _BRACKETED.sub(r"⟦\1⟧", text)


def unshield(text: str) -> str:
    """Undo `shield` in what the teacher copied."""
    return _SHIELDED.sub(r"[\1]", text)
