"""Marks that models put around their thoughts (opening, closing), and whole replies judged by hand."""

# A line for every form of `core/teacher/marks.py` and for every model that is known to write it.
PAIRS = {
    "Qwen, DeepSeek, GLM, Nemotron": ("<think>", "</think>"),
    "Reflection": ("<thinking>", "</thinking>"),
    "EXAONE": ("<thought>", "</thought>"),
    "in capitals": ("<THINK>", "</THINK>"),
    "with a blank": ("< think >", "< / think >"),
    "with attributes": ('<thinking mode="deep" time="3">', "</thinking>"),
    "reasoning": ("<reasoning>", "</reasoning>"),
    "scratchpad": ("<scratchpad>", "</scratchpad>"),
    "monologue": ("<inner_monologue>", "</inner_monologue>"),
    "Seed": ("<seed:think>", "</seed:think>"),
    "LongCat": ("<longcat_think>", "</longcat_think>"),
    "special tokens": ("<|thinking|>", "<|/thinking|>"),
    "OpenThoughts": ("<|begin_of_thought|>", "<|end_of_thought|>"),
    "Cohere": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "DeepSeek's bars": ("<｜begin▁of▁thinking｜>", "<｜end▁of▁thinking｜>"),
    "Magistral": ("[THINK]", "[/THINK]"),
    "brackets": ("[thinking]", "[/thinking]"),
    "begin and end in brackets": ("[BEGIN THINKING]", "[END THINKING]"),
    "Pangu": ("[unused16]", "[unused17]"),
    "Kimi": ("◁think▷", "◁/think▷"),
    "full width": ("＜ｔｈｉｎｋ＞", "＜／ｔｈｉｎｋ＞"),
    "angle quotes": ("‹think›", "‹/think›"),
    "lenses": ("【think】", "【/think】"),
    "Cyrillic letters": ("<thіnk>", "</thіnk>"),
    "a blank of no width": ("<\u200bthink>", "<\u200b/think>"),
    "HTML": ("&lt;think&gt;", "&lt;/think&gt;"),
    "JSON": ("\\u003cthink\\u003e", "\\u003c/think\\u003e"),
    "Markdown": ("\\<think\\>", "\\</think\\>"),
    "a folded block": ('<details type="reasoning" done="true">', "</details>"),
    "a folded block with a title": ("<details>\n<summary>Thought for 3 s</summary>\n", "</details>"),
    "a fence": ("```thinking\n", "\n```"),
    "gpt-oss": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    "gpt-oss without its tokens": ("analysis", "assistantfinal"),
    "Gemma": ("<|channel>thought\n", "<channel|>"),
    "Granite": ("Here is my thought process:", "Here is my response:"),
    "Apriel": ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
}
# Words in brackets that may be headings too: thoughts only if they are closed.
CLOSED_ONLY = {
    "reasoning in brackets": ("[REASONING]", "[/REASONING]"),
    "thoughts in brackets": ("[Thoughts]", "[/Thoughts]"),
    "HuatuoGPT": ("## Thinking\n", "\n## Final Response\n"),
}
# Their openings are not written by a template, so that a closing alone says nothing of what was before it.
NEVER_EATEN = {"a folded block", "a folded block with a title", "a fence", "Granite", "Apriel", "Gemma"}

# (reply, what is taken from it; "=status" if nothing is)
REPLIES = [
    ("<think>a</think><think>b</think>[Better Answer] c [End]", "c"),
    ("<think></think>\n[Better Answer] c [End]", "c"),
    ("<think/>[Better Answer] c [End]", "c"),
    ("**<think>** a **</think>** [Better Answer] c [End]", "c"),
    ("<think>a <think>b</think> [Better Answer] d [End]</think>[Better Answer] c [End]", "c"),
    ("<think>use {`</think>`} [Better Answer] d [End]", "d"),  # the first closing closes
    ("<think>[Better Answer] d [End]</thinking>[Better Answer] c [End]", "=no_markers"),
    ("It is short.\n<think>[Better Answer] d [End]\n[Better Answer] e [End]", "=no_markers"),
    ("It is short. <think>[Better Answer] d [End]</think>", "=no_markers"),
    ("[Better Answer] c [End]\n<think>Is it? [Better Answer] d [End]</think>", "c"),
    ("[Better Answer] c [End]\n<think>Is it? [Better Answer] d [End]", "c"),
    ("[Better Answer] <think>d [End]</think> c [End]", "c"),
    ("[Better Answer]\n<think>\nd\n</think>\n\nc\n[End]", "c"),
    ("[Better Answer] c.\n<think>\nd\n[End]", "c."),
    ("[Better Answer] c. <think>Is it right?</think> Yes. [End]", "=no_markers"),
    ("[Better Answer] c <think>is it right?</think> d [End]", "=no_markers"),
    ("[Better Answer] d [End]\nassistantfinal[Better Answer] c [End]", "c"),
    # Of marks in code and in sentences an answer may speak.
    ("[Better Answer] Write `<think>` first. [End]", "Write `<think>` first."),
    ("[Better Answer] Use the <think> tag. [End]", "Use the <think> tag."),
    ("[Better Answer] Put it in `<think>…</think>`. Done. [End]", "Put it in `<think>…</think>`. Done."),
    ("[Better Answer] Put it between <think> and </think>. [End]", "Put it between <think> and </think>."),
    ("[Better Answer] So:\n```xml\n<reasoning>\nx\n</reasoning>\n```\nDone. [End]",
     "So:\n```xml\n<reasoning>\nx\n</reasoning>\n```\nDone."),
    ("It explains <think> badly.\n[Better Answer] Text between <think> and </think> is hidden. [End]",
     "Text between <think> and </think> is hidden."),
    ("[Reasoning] It is short.\n[Better Answer] c [End]", "c"),
    ("<analysis>It is short.</analysis>\n[Better Answer] c [End]", "c"),
    ("Analysis: it is short.\n[Better Answer] c [End]", "c"),
    ("analysis\nIt is short.\n[Better Answer] c [End]", "c"),
    ("analysisWe need more. [Better Answer] d [End]", "=no_markers"),
    ("<|channel|>analysis<|message|>[Better Answer] d [End]<|end|><|start|>assistant<|channel|>commentary<|message|>"
     "[Better Answer] e [End]<|end|>", "=no_markers"),
    ("[Better Answer] c [End]<|end|><|start|>assistant<|channel|>analysis<|message|>[Better Answer] d [End]", "c"),
    ("<|channel|>final <|constrain|>json<|message|>[Better Answer] c [End]<|return|>", "c"),
    # What is put around a reply, and tokens at its end, are no part of it.
    ("<think>d</think><answer>[Better Answer] c [End]</answer>", "c"),
    ("<|begin_of_thought|>d<|end_of_thought|><|begin_of_solution|>[Better Answer] c [End]<|end_of_solution|>", "c"),
    ("[Better Answer] c [End]<|im_end|>", "c"),
    ("[Better Answer] c<|im_end|></s>", "c"),
]  # fmt: skip
OBJECTS = [
    ('<think>{"better_answer": "d"}</think>{"better_answer": "c"}', "c"),
    ('{"better_answer": "d"}</think>{"better_answer": "c"}', "c"),
    ('<think>{"better_answer": "d"}', "=no_markers"),
    ('{"critique": "It explains <think> badly.", "better_answer": "c"}', "c"),
    ('{"better_answer": "<think>d</think>c"}', "c"),
    ('{"better_answer": "<think>d"}', "=no_markers"),
    ('{"better_answer": "c. <think>Is it?</think> Yes."}', "=no_markers"),
    ('{"better_answer": "Put it between <think> and </think>."}', "Put it between <think> and </think>."),
]
