"""Recognizes refusals in the languages of `refusals.toml`. What the parser does with a refusal is in `parse.py`.

The words of each language are in the data file. The rule is the same for all languages: a refusal is a short text that
begins with words of refusal, followed by nothing that looks like an answer, a story or code.
"""

import re
import tomllib
import unicodedata
from dataclasses import dataclass
from functools import cache
from importlib import resources

# A longer text that begins like a refusal explains something. Counted in letters of an alphabet: a Han character counts
# as three, a kana or a Hangul syllable as two.
LIMIT = 400
# Texts above this length are rejected first. It is higher than LIMIT, because combining marks and characters without
# width do not count as letters.
_RAW_LIMIT = 4 * LIMIT

KEYS = frozenset({"acts", "sorry", "ai", "cannot", "lacks", "alone", "asks", "goes_on"})
# Between the apology and "I cannot": within one sentence. `।`, `。` and `؟` end a sentence too.
_GAP = r"[^.!?。।؟\n]{0,80}?"
# Accents, Arabic vowel signs and hamza, the dot under a Devanagari letter: often omitted in writing, so ignored.
_MARKS = re.compile("[\u0300-\u036f\u0610-\u061a\u0640\u064b-\u065f\u0670\u093c]")
_WIDTHLESS = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufe0e\ufe0f\ufeff]")
_THREE = re.compile("[\u3400-\u9fff\uf900-\ufaff]")
_TWO = re.compile("[\u3041-\u30ff\uac00-\ud7a3]")
# Code anywhere, or a list, a table or a text after a colon following the refusal: an answer follows.
_CODE = re.compile(r"```|^\s*(?://|/\*|<!--|#!|(?:def|import|return|class)\b)|[{}]|;[ \t]*$|\w\(\)", re.MULTILINE)
_ANSWER = re.compile(r":\s*\n|\n\s*(?:[-*•][ \t]|\||\d{1,2}[.)、])")
# A dash, or a quotation that ends before the text does: a character of a story refuses, or a sentence is quoted.
_DIALOGUE = re.compile(r'[\s*_>#]*(?:[—–]|"[^"]*"[^\w]*\w)')
_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class _Language:
    """Compiled patterns: `begins` at the first word, `asks` anywhere, `goes_on` after the refusal."""

    name: str
    begins: re.Pattern[str]
    asks: re.Pattern[str] | None
    goes_on: re.Pattern[str] | None


def refusal_language(text: str) -> str | None:
    """The language (a key of `refusals.toml`) in which the whole text refuses; None if it does not."""
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
    """A text without differences of case, accents, width, quotation marks, traditional or simplified characters."""
    text = _WIDTHLESS.sub("", unicodedata.normalize("NFKD", text))
    text = unicodedata.normalize("NFC", _MARKS.sub("", text)).casefold().translate(_variants())
    return re.sub(r"[^\S\n]+", " ", text).strip()


def words() -> dict[str, dict[str, list[str]]]:
    """The data file's tables, one per language, unchanged."""
    return {name: table for name, table in _data().items() if isinstance(table, dict)}


def _letters(text: str) -> int:
    return len(text) + 2 * len(_THREE.findall(text)) + len(_TWO.findall(text))


@cache
def _data() -> dict:
    return tomllib.loads(resources.files(__package__).joinpath("refusals.toml").read_text(encoding="utf-8"))


@cache
def _variants() -> dict[int, str]:
    """Maps every character of a group to the group's first."""
    return {ord(other): group[0] for group in _data()["same"] for other in group[1:]}


@cache
def _languages() -> tuple[_Language, ...]:
    return tuple(_compiled(name, table) for name, table in words().items())


def _compiled(name: str, table: dict[str, list[str]]) -> _Language:
    # Patterns are folded like texts, so that the data file may contain accents.
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
