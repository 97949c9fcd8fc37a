"""Constraints for the form of a reply: a JSON schema, or a GBNF grammar for llama.cpp servers."""

from typing import Any

from srt_assets.core.teacher.prompts import Kind


def json_schema(kind: Kind) -> dict[str, Any]:
    """`response_format` for providers with structured output."""
    names = ["critique", "new_instruction", "new_answer"] if kind == "instruction" else ["critique", "better_answer"]
    schema = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names},
        "required": names,
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": f"reflected_{kind}", "strict": True, "schema": schema}}


# Texts may contain brackets, but not the beginning of [End] or of the next marker.
_TEXT = r"""text ::= ([^\[] | "[" [^ENBenb])+
"""

_FREE = {
    "instruction": r"""root ::= text "[New Instruction] " text " [End]\n[New Answer] " text " [End]"
""",
    "response": r"""root ::= text "[Better Answer] " text " [End]"
""",
}

# For the packaged teacher of 135 million parameters: a critique of one sentence, an instruction that begins with a verb
# or question word, an answer of a few whole sentences (longer ones repeat themselves). The bounds do not depend on
# max_tokens, because the grammar is part of the call's key.
# fmt: off
_VERBS = [
    "Analyze", "Compare", "Create", "Describe", "Design", "Discuss", "Explain", "Give", "How", "Identify",
    "List", "Outline", "Propose", "Suggest", "Summarize", "What", "Which", "Why", "Write",
]
# fmt: on
_SMALL = rf"""critique ::= "Critique: " [A-Z] [^.?!\n\[\]]{{20,90}} ".\n"
task ::= ({" | ".join(f'"{verb}"' for verb in _VERBS)}) " " [^.?!\n\[\]]{{25,180}} [.?]
answer ::= line ([ \n] line){{1,4}}
line ::= [^\n\[\] ] [^.!?\n\[\]]{{8,200}} [.!?]
"""
_BOUNDED = {
    "instruction": r"""root ::= critique "[New Instruction] " task " [End]\n[New Answer] " answer " [End]"
""",
    "response": r"""root ::= critique "[Better Answer] " answer " [End]"
""",
}


def gbnf(kind: Kind, bounded: bool) -> str:
    """The grammar of a marker reply. `bounded` keeps critique, instruction and answer short."""
    return _SMALL + _BOUNDED[kind] if bounded else _FREE[kind] + _TEXT
