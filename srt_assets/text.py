"""Texts of strangers (data, teachers, file names, checkpoints) made harmless where they are shown.

One rule for each place: a terminal, JSON on a terminal, Markdown. Files for other programs hold texts as they are.
"""

import html
import re

# What a terminal acts on or does not show: control characters but tab and line feed; marks that change the order of
# reading; what has no width, such as tags, with which a text can hold invisible words; other line ends; halves
# of characters, which names of files that are not UTF-8 are made of.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\ud800-\udfff]"
)
# What can begin a mark of Markdown within a line, or in its dialects a link, a mention, a formula, an emoji. Within a
# word `_` is none.
_MARKS = re.compile(r"[\\`*\[|~$@#{]|(?<![^\W_])_|_(?![^\W_])|:(?=//|[\w+-]+:)|(?<=www)\.", re.IGNORECASE)


def printable(text: str) -> str:
    """The text with each character that a terminal would not show as it is in the form `\\x1b`: seen, and idle."""
    return _UNSEEN.sub(lambda found: ascii(found.group())[1:-1], text.replace("\r\n", "\n"))


def printable_json(text: str) -> str:
    """The same for a text that is JSON, which stays JSON of the same content: `\\u001b`."""

    def escaped(found: re.Match[str]) -> str:
        units = found.group().encode("utf-16-be", "surrogatepass").hex()
        return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))

    return _UNSEEN.sub(escaped, text)


def in_markdown(text: str) -> str:
    """The text for a line or a cell of Markdown: it stays one line, and nothing in it is a mark, HTML or a link."""
    line = " ".join(printable(text).split())
    return html.escape(_MARKS.sub(lambda found: f"\\{found.group()}", line), quote=False)


def as_code(text: str) -> str:
    """The text as a code span, in a line or a cell: what it holds of backticks does not end it."""
    line = " ".join(printable(text).split()) or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    around = " " if line[0] == "`" or line[-1] == "`" else ""
    # In a table a bar ends the cell even here.
    return f"{fence}{around}{line}{around}{fence}".replace("|", "\\|")


def as_block(text: str) -> str:
    """The text as a block of code, its lines as they are."""
    lines = printable(text).strip("\n").split("\n")
    return "\n".join(f"    {line}" for line in lines)
