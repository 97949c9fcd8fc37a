"""A table of the marks that models put around their thoughts, as patterns. They are applied in `thoughts.py`.

Add the marks of a new model here, and a line in tests/teacher_thoughts.py. Patterns ignore case and are matched on a
text whose look-alike characters have been replaced (`plain`).
"""

import re
from dataclasses import dataclass, field

# Tag names: <seed:think>, <inner_thoughts> and <longcat_think> are found by the words in them.
_TAGS = (
    r"(?:[\w.-]{1,30}:)?(?:(?!(?:begin|start|end)[_ -])[\w-]{0,30}"
    r"(?:think|thought|reasoning|scratch[_-]?pad|monologue|rationale)[\w-]{0,30}"
    r"|cot|chain_of_thought|analysis|reflection|deliberation|reason)"
)
_THIS = r"think(?:ing)?|thoughts?|reasoning"
_TAG = ("<", "&lt;", "\\u003c")
_LT, _GT = r"(?:\\?<|&lt;|\\u003c)\|?[ \t]{0,8}", r"[ \t]{0,8}\|?(?:\\?>|&gt;|\\u003e)"


@dataclass(frozen=True)
class Mark:
    """A pair of marks, as patterns. `{name}` stands for one of `names`, the same one in both patterns.

    `never_closed`: after an opening without its closing, the rest of the text is thoughts. `eaten`: before a closing
    without its opening, all text is thoughts, because the model's chat template wrote the opening. `in_front`: the mark
    consists of ordinary words and opens thoughts only at the beginning of a line. `needs`: a text that contains none of
    these strings has neither mark, so the patterns are not tried.
    """

    opening: str
    closing: str
    names: str = ""
    never_closed: bool = True
    eaten: bool = False
    in_front: bool = False
    needs: tuple[str, ...] = ()
    opens: re.Pattern[str] = field(init=False)
    closes: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        for name, pattern in (("opens", self.opening), ("closes", self.closing)):
            named = pattern.replace("{name}", f"(?P<name>{self.names})")
            object.__setattr__(self, name, re.compile(named, re.IGNORECASE))


MARKS = (
    # <think>, <thinking mode="deep">, <|thinking|>, &lt;thought&gt;, ◁think▷ (Kimi), ＜think＞
    Mark(_LT + r"{name}(?:\s[^<>\n]{0,200})?" + _GT, _LT + r"/[ \t]{0,8}{name}" + _GT, _TAGS, eaten=True, needs=_TAG),
    # [THINK]…[/THINK] (Magistral), 【think】…【/think】. Other words in square brackets may be headings.
    Mark(r"\[[ \t]{0,8}{name}[ \t]{0,8}\]", r"\[[ \t]{0,8}/[ \t]{0,8}{name}[ \t]{0,8}\]", "think|thinking", eaten=True),
    Mark(
        r"\[[ \t]{0,8}{name}[ \t]{0,8}\]",
        r"\[[ \t]{0,8}/[ \t]{0,8}{name}[ \t]{0,8}\]",
        r"thoughts?|reasoning|analysis|reflection|scratch[_ -]?pad|inner[_ ]monologue|cot",
        never_closed=False,
    ),
    # <|begin_of_thought|>…<|end_of_thought|> (OpenThoughts), <|START_THINKING|>…<|END_THINKING|> (Cohere)
    Mark(
        _LT + r"(?:begin|start)[ _]?(?:of[ _]?)?{name}" + _GT,
        _LT + r"end[ _]?(?:of[ _]?)?{name}" + _GT,
        _THIS,
        eaten=True,
        needs=_TAG,
    ),
    Mark(r"\[(?:begin|start)[ _](?:of[ _])?{name}\]", r"\[end[ _](?:of[ _])?{name}\]", _THIS, eaten=True),
    # Pangu
    Mark(r"\[unused16\]", r"\[unused17\]", eaten=True),
    # Proxies turn thoughts into a folded block or a fenced one
    Mark(r"<details[^<>\n]{0,200}type=.reasoning[^<>\n]{0,200}>", r"</details>"),
    Mark(
        r"<details[^<>\n]{0,200}>\s{0,8}<summary>[^<\n]{0,40}(?:think|thought|reasoning)[^<\n]{0,60}</summary>",
        r"</details>",
    ),
    Mark(rf"```(?:{_THIS})[ \t]{{0,8}}\n", r"\n```"),
    # gpt-oss, where the server drops the special tokens of its channels
    Mark(r"(?!)", r"assistantfinal(?!(?-i:[a-z]))", eaten=True, needs=("assistantfinal",)),
    # Granite, Apriel, HuatuoGPT-o1
    Mark("here is my thought process:", "here is my response:", in_front=True, needs=("thought process:",)),
    Mark("here are my reasoning steps:", r"\[begin final response\]", in_front=True, needs=("reasoning steps:",)),
    Mark(
        r"#{1,3} thinking[ \t]{0,8}\n",
        r"\n#{1,3} final response[ \t]{0,8}\n",
        never_closed=False,
        in_front=True,
        needs=("# Thinking",),
    ),
)

# Channel formats: every channel but the final one is thoughts. gpt-oss writes <|channel|>analysis<|message|>…<|end|>
# <|start|>assistant<|channel|>final<|message|>…<|return|>, Gemma <|channel>thought\n…<channel|>…
CHANNEL = re.compile(
    r"<\|channel\|?>[ \t]{0,8}([a-z_]{1,30})(?:[^<>\n]{0,80}(?:<\|constrain\|>[^<>\n]{0,40})?<\|message\|>)?", re.I
)
CHANNEL_END = re.compile(r"<\|(?:end|return|call)\|>|<channel\|>", re.I)
TURN = re.compile(r"<\|start\|>[ \t]{0,8}(?:assistant)?", re.I)
FINAL_CHANNELS = ("final", "response")
# Servers that drop the special tokens leave the channel names: "analysisWe need …assistantfinalHere is …".
BARE_CHANNEL = re.compile(r"\s{0,20}(?:assistant)?(?:analysis|commentary)(?=[A-Z\"'*\[({<]|(\n))")
BARE_FINAL = re.compile(r"assistant\s{0,4}final(?![a-z])")

# Marks that models put around a whole reply. They are removed at its beginning and its end.
WRAPPERS = (
    Mark(r"\A\s{0,20}<{name}>", r"</{name}>\s{0,20}\Z", "answer|response|output|solution|final_answer"),
    Mark(
        r"\A\s{0,20}<\|(?:begin|start)[ _](?:of[ _])?{name}\|>",
        r"<\|end[ _](?:of[ _])?{name}\|>\s{0,20}\Z",
        "solution|answer|response",
    ),
    Mark(r"\A\s{0,20}\[begin final response\]", r"\[end final response\]\s{0,20}\Z"),
)
SPECIAL_AT_END = re.compile(r"\s{0,20}(?:<\|[\w ]{1,40}\|>|<end_of_turn>|</s>|\[end final response\])\s{0,20}\Z", re.I)

_BRACKETS = {
    "<": "＜〈‹《⟨˂ᐸ◁❮⟪≺", ">": "＞〉›》⟩˃ᐳ▷❯⟫≻", "/": "／∕⁄⧸╱", "[": "［【〔⟦〚", "]": "］】〕⟧〛",
    "|": "｜│ǀ∣❘", "_": "＿▁‗",
}  # fmt: skip
_LETTERS = {
    "a": "аα", "c": "сϲ", "e": "еε", "g": "ɡ", "h": "һн", "i": "іιı", "k": "кκ", "l": "ӏ", "n": "пո", "o": "оο",
    "p": "рρ", "r": "г", "s": "ѕ", "t": "тτ", "u": "υս", "y": "уү",
}  # fmt: skip
_PLAIN = {ord(other): char for table in (_BRACKETS, _LETTERS) for char, others in table.items() for other in others}
_PLAIN |= {
    ord(other.upper()): char for char, others in _LETTERS.items() for other in others if not other.upper().isascii()
}
_PLAIN |= {0xFF01 + at: chr(0x21 + at) for at in range(94)}  # the full-width forms of ASCII
_UNSEEN = re.compile("[\u00ad\u200b\u200c\u200d\u2060\ufeff]")


def plain(text: str) -> tuple[str, list[int] | None]:
    """The text with look-alike characters replaced and invisible ones removed, and each character's original place.

    The places are None if no character has moved.
    """
    if text.isascii():
        return text, None
    seen = text.translate(_PLAIN)
    if not _UNSEEN.search(seen):
        return seen, None
    places = [place for place, char in enumerate(seen) if not _UNSEEN.match(char)]
    return _UNSEEN.sub("", seen), places
