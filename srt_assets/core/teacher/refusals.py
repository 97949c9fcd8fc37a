"""Whether a text is a refusal, in the languages `refusals.toml` knows. What the parser does about one is not here.

The words of a language stand in the data file; the rule is here and is one for all: a refusal is a short text that
begins with one, and nothing after it looks like an answer, a story or code.
"""

import re
import tomllib
import unicodedata
from dataclasses import dataclass
from functools import cache
from importlib import resources

# A longer text that begins like a refusal explains something. Counted in letters of an alphabet: a Han character says
# as much as three of them, a kana or a Hangul syllable as much as two.
LIMIT = 400
# Before any other work; marks and characters without width may make a text longer than its letters.
_RAW_LIMIT = 4 * LIMIT

KEYS = frozenset({"acts", "sorry", "ai", "cannot", "lacks", "alone", "asks", "goes_on"})
# From the apology to "I cannot": within a sentence. `। 。` end one, `؟` too.
_GAP = r"[^.!?。।؟\n]{0,80}?"
# Accents, Arabic vowel signs and hamza, the dot under a Devanagari letter: writers leave them out.
_MARKS = re.compile("[\u0300-\u036f\u0610-\u061a\u0640\u064b-\u065f\u0670\u093c]")
_WIDTHLESS = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufe0e\ufe0f\ufeff]")
_THREE = re.compile("[\u3400-\u9fff\uf900-\ufaff]")
_TWO = re.compile("[\u3041-\u30ff\uac00-\ud7a3]")
# Code anywhere; a list, a table or a text after a colon behind the refusal: the answer follows.
_CODE = re.compile(r"```|^\s*(?://|/\*|<!--|#!|(?:def|import|return|class)\b)|[{}]|;[ \t]*$|\w\(\)", re.MULTILINE)
_ANSWER = re.compile(r":\s*\n|\n\s*(?:[-*•][ \t]|\||\d{1,2}[.)、])")
# A dash or a quotation that ends before the text does: somebody in a story refuses, or a sentence is spoken about.
_DIALOGUE = re.compile(r'[\s*_>#]*(?:[—–]|"[^"]*"[^\w]*\w)')
_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class _Language:
    """Compiled patterns: `begins` at the first word, `asks` anywhere, `goes_on` behind the refusal."""

    name: str
    begins: re.Pattern[str]
    asks: re.Pattern[str] | None
    goes_on: re.Pattern[str] | None


def refusal_language(text: str) -> str | None:
    """The language (a key of `refusals.toml`) in which the whole text refuses, or None where it does not."""
    if len(text) > _RAW_LIMIT:
        return None
    plain = fold(text)
    lead = _NO_WORD.match(plain)
    start = plain[lead.end() :] if lead else plain
    if _letters(start) > LIMIT or _CODE.search(plain) or _DIALOGUE.match(plain):
        return None
    for language in _languages():
        found = language.begins.match(start)
        if found is None:
            continue
        rest = start[found.end() :]
        if _ANSWER.search(rest) or (language.goes_on and language.goes_on.search(rest)):
            continue
        if language.asks is None or not language.asks.search(start):
            return language.name
    return None


def refuses(text: str) -> bool:
    """Whether the whole text is a refusal."""
    return refusal_language(text) is not None


def fold(text: str) -> str:
    """A text as patterns see it: case, accents, width, kind of quotes, traditional or simplified do not count."""
    text = _WIDTHLESS.sub("", unicodedata.normalize("NFKD", text))
    text = unicodedata.normalize("NFC", _MARKS.sub("", text)).casefold().translate(_variants())
    return re.sub(r"[^\S\n]+", " ", text).strip()


def words() -> dict[str, dict[str, list[str]]]:
    """The data file's tables, one a language, as they are written."""
    return {name: table for name, table in _data().items() if isinstance(table, dict)}


def _letters(text: str) -> int:
    return len(text) + 2 * len(_THREE.findall(text)) + len(_TWO.findall(text))


@cache
def _data() -> dict:
    return tomllib.loads(resources.files(__package__).joinpath("refusals.toml").read_text(encoding="utf-8"))


@cache
def _variants() -> dict[int, str]:
    """Every character of a group is read as the group's first."""
    return {ord(other): group[0] for group in _data()["same"] for other in group[1:]}


@cache
def _languages() -> tuple[_Language, ...]:
    return tuple(_compiled(name, table) for name, table in words().items())


def _compiled(name: str, table: dict[str, list[str]]) -> _Language:
    # Patterns are folded as texts are, so that the data file may be written with accents.
    acts = "|".join(table.get("acts", ()))
    any_of = {
        key: "(?:" + "|".join(fold(line.replace("{acts}", f"(?:{acts})")) for line in table[key]) + ")"
        for key in KEYS - {"acts"}
        if table.get(key)
    }
    cannot = any_of["cannot"]
    after_sorry = f"(?:{cannot}|{any_of['lacks']})" if "lacks" in any_of else cannot
    begins = [rf"{any_of['sorry']}\W*{_GAP}{after_sorry}"]
    begins += [rf"{any_of['ai']}{_GAP}{cannot}"] if "ai" in any_of else []
    begins += [any_of["alone"]] if "alone" in any_of else []
    asks, goes_on = (re.compile(any_of[key]) if key in any_of else None for key in ("asks", "goes_on"))
    return _Language(name, re.compile("|".join(begins)), asks, goes_on)
