"""Texts of strangers (data, teacher) made harmless for a terminal."""

import re

# Everything that moves the cursor, changes colours or the window: all control characters but tab and line feed, and the
# marks that reverse reading order, with which a text can show other words than it holds.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with each control character as its escape (`\\x1b`), so that it is seen and does nothing."""
    text = text.replace("\r\n", "\n")
    return _UNPRINTABLE.sub(lambda match: ascii(match.group())[1:-1], text)
