"""Escapes untrusted texts (data, replies, file names, checkpoints) where they are shown.

There is one function for each place: a terminal, JSON on a terminal, Markdown. Files for other programs contain the
texts unchanged.
"""

import html
import re

# Characters that a terminal acts on or does not show: control characters except tab and line feed; marks that change
# the direction of text; characters without width, such as tags, which can hide words; other line ends; lone surrogates,
# which stand for bytes in file names that are not UTF-8.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\ud800-\udfff]"
)
# Characters that can begin Markdown within a line, or in its dialects a link, a mention, a formula, an emoji. Within a
# word `_` has no meaning.
_MARKS = re.compile(r"[\\`*\[|~$@#{]|(?<![^\W_])_|_(?![^\W_])|:(?=//|[\w+-]+:)|(?<=www)\.", re.IGNORECASE)


def printable(text: str) -> str:
    """The text with each character that a terminal would not show as it is escaped as `\\x1b`."""
    return _UNSEEN.sub(lambda found: ascii(found.group())[1:-1], text.replace("\r\n", "\n"))


def printable_json(text: str) -> str:
    """JSON with the same characters escaped as `\\u001b`, so that it stays JSON with the same content."""

    def escaped(found: re.Match[str]) -> str:
        units = found.group().encode("utf-16-be", "surrogatepass").hex()
        return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))

    return _UNSEEN.sub(escaped, text)


def in_markdown(text: str) -> str:
    """The text escaped for a line or a cell of Markdown: it stays one line, without markup, HTML or links."""
    line = " ".join(printable(text).split())
    return html.escape(_MARKS.sub(lambda found: f"\\{found.group()}", line), quote=False)


def as_code(text: str) -> str:
    """The text as a Markdown code span for a line or a cell; backticks in it do not end the span."""
    line = " ".join(printable(text).split()) or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    around = " " if line[0] == "`" or line[-1] == "`" else ""
    # In a table a vertical bar ends the cell even within a code span.
    return f"{fence}{around}{line}{around}{fence}".replace("|", "\\|")


def as_block(text: str) -> str:
    """The text as an indented Markdown code block with its lines unchanged."""
    lines = printable(text).strip("\n").split("\n")
    return "\n".join(f"    {line}" for line in lines)
