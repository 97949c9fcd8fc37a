"""Refusals: examples in every language, labelled answers of real data, texts made to break or to slow the patterns."""

import json
import re
import subprocess
import sys
import tomllib
import unicodedata
from hashlib import sha256
from importlib import resources
from pathlib import Path

import pytest

from srt_assets.core.teacher import refusals
from srt_assets.core.teacher.parse import parse
from srt_assets.core.teacher.refusals import LIMIT, fold, refusal_language, refuses, words

HERE = Path(__file__).parent
EXAMPLES = tomllib.loads((HERE / "refusals.toml").read_text(encoding="utf-8"))
LABELLED = tomllib.loads((HERE / "refusal_labels.toml").read_text(encoding="utf-8"))
LABELS = ("refusal", "partial", "asks", "correction", "answer")
CHINESE = ("alpaca_zh_1000.json", "sharegpt_zh_1000.jsonl")
APOLOGY = re.compile("歉|对不起|對不起|不好意思|[遗遺]憾")
DATA = next(
    (folder for folder in (HERE.parent / "shared" / "data", HERE.parents[1] / "shared" / "data") if folder.is_dir()),
    None,
)
FIRST = {language: table["refusals"][0] for language, table in EXAMPLES.items()}


def of_each(kind):
    return [
        pytest.param(language, text, id=f"{language}{i}")
        for language in EXAMPLES
        for i, text in enumerate(EXAMPLES[language][kind])
    ]


@pytest.mark.parametrize(("language", "text"), of_each("refusals"))
def test_a_refusal_is_met_in_its_language(language, text):
    assert refusal_language(text) == language


@pytest.mark.parametrize(("language", "text"), of_each("look_alikes"))
def test_a_look_alike_is_not(language, text):
    assert refusal_language(text) is None


def test_ten_of_each_in_every_language_that_has_patterns():
    assert set(EXAMPLES) == set(words())
    for table in EXAMPLES.values():
        assert len(set(table["refusals"])) == len(set(table["look_alikes"])) == 10


@pytest.mark.parametrize(("language", "text"), FIRST.items())
def test_writing_does_not_count(language, text):
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    around = [
        f"**{text}**",
        f"> {text}",
        f"# {text}",
        f"- {text}",
        f"🙏 {text}",
        f'"{text}"',
        f"“{text}”",
        f"\n\n  {text}\n",
    ]
    others = [
        text.upper(),
        text.replace("'", "’"),
        text.replace(" ", "\u00a0"),
        text.replace(",", "，"),
        "\u200b".join(text),
    ]
    for written in forms + around + others:
        assert refusal_language(written) == language, written


def test_traditional_and_full_width_characters_and_bare_letters_without_accents():
    for text in (
        "對不起，我無法回答這個問題。",
        "抱歉,我不能協助您完成這項請求.",
        "Ｉ'ｍ ｓｏｒｒｙ，　ｂｕｔ Ｉ ｃａｎｎｏｔ ｈｅｌｐ．",
        "Je suis desole, mais je ne peux pas repondre a cette question.",
        "عذرا، لا أستطيع المساعدة في ذلك.",
    ):
        assert refuses(text), text


@pytest.mark.parametrize("text", FIRST.values())
def test_a_refusal_in_any_place_of_a_reply(text):
    def status(kind, form, reply):
        parsed = parse(kind, form, reply, "stop")
        assert (parsed.instruction, parsed.response) == (None, None)
        return parsed.status

    assert status("response", "markers", text) == "refused"
    assert status("response", "markers", f"The answer is weak.\n[Better Answer] {text} [End]") == "refused"
    assert status("instruction", "markers", f"[New Instruction] Do X. [End]\n[New Answer] {text} [End]") == "refused"
    # No usable pair: without the look into the parts a second, paid turn would follow.
    assert status("instruction", "markers", f"[New Instruction] {text} [End]") == "refused"
    assert status("instruction", "markers", f"[New Instruction] {text} [End] [New Answer] N/A [End]") == "refused"
    assert status("response", "json_schema", json.dumps({"critique": "c", "better_answer": text})) == "refused"
    assert status("response", "json_schema", json.dumps({"critique": text, "better_answer": ""})) == "refused"
    assert status("response", "json_schema", json.dumps({"error": text})) == "refused"
    assert status("instruction", "json_schema", json.dumps({"new_instruction": text, "new_answer": "N/A"})) == "refused"
    assert status("response", "json_schema", f"```json\n{json.dumps({'better_answer': text})}\n```") == "refused"


def test_an_answer_that_mentions_one_is_still_an_answer():
    for text in FIRST.values():
        reply = f"[Better Answer] In the letter he wrote: {text} [End]"
        assert parse("response", "markers", reply, "stop").status == "ok"
    assert (
        parse(
            "response", "json_schema", '{"better_answer": "Paris.", "note": "Sorry, I cannot say more."}', "stop"
        ).status
        == "ok"
    )


def test_a_long_text_that_begins_like_one_explains_something():
    for text, letter, weight in (
        (FIRST["en"], "a", 1),
        (FIRST["zh"], "的", 3),
        (FIRST["ko"], "가", 2),
        (FIRST["ru"], "а", 1),
    ):
        room = LIMIT - refusals._letters(text)
        assert refuses(text + letter * (room // weight)) and not refuses(text + letter * (room // weight + 1))


def test_the_data_file_is_as_its_head_says():
    for language, table in words().items():
        assert set(table) <= refusals.KEYS and {"sorry", "cannot"} <= set(table), language
        for line in (line for lines in table.values() for line in lines):
            where = f"{language}: {line}"
            assert not re.search(r"\\[A-Z]", line), f"{where}: folding makes it lower case"
            assert not re.search(r"(?<!\\)[*+]|\{\d*,\}", line), f"{where}: an unbounded repeat"
            assert line == line.strip(), f"{where}: folding removes the blank"
            re.compile(fold(line.replace("{acts}", "x")))
    assert resources.files("srt_assets.core.teacher").joinpath("refusals.toml").is_file()


HOSTILE = """
import itertools, tomllib
from pathlib import Path
from srt_assets.core.teacher.refusals import refuses
examples = tomllib.loads(Path("tests/refusals.toml").read_text(encoding="utf-8"))
heads = ["", *(text[:40] for table in examples.values() for text in table["refusals"][::3])]
units = [" ", "a", "'", '"', "*", "\\n", "- ", "sorry ", "i can't ", "as an ai ", "no puedo ", "je ne peux ", "ne ",
         "ich kann nicht ", "\\u0301", "\\u200b", "\\ufdfa", "抱歉", "我不能", "作为ai", "できま", "수 없", "не могу ",
         "لا ", "नहीं "]
for head, unit, length in itertools.product(heads, units, (350, 1500, 300_000)):
    refuses((head + unit * length)[:length])
"""


def test_no_text_holds_up_the_calls():
    # In a process of its own: nothing can interrupt a match.
    subprocess.run([sys.executable, "-c", HOSTILE], check=True, timeout=120, cwd=HERE.parent)


def labels(file):
    """(row, turn) → label."""
    return {tuple(map(int, key.split("."))): label for label in LABELS for key in LABELLED[file].get(label, "").split()}


def test_the_labels_are_whole():
    for file, table in LABELLED.items():
        assert set(table) <= {"sha256", "answers", *LABELS}
        assert re.fullmatch("[0-9a-f]{64}", table["sha256"]) and table["answers"] > 0
        keys = [key for label in LABELS for key in table.get(label, "").split()]
        assert all(re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)", key) for key in keys)
        assert len(set(keys)) == len(keys), f"{file}: an answer has two labels"
    assert set(CHINESE) <= set(LABELLED) and all(len(labels(file)) >= 40 for file in CHINESE)


def answers(file):
    """(row, turn) → the assistant's text, for all forms of the files."""
    text = (DATA / file).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()] if file.endswith("l") else json.loads(text)
    for number, row in enumerate(rows):
        if "output" in row:
            yield (number, 0), row["output"]
            continue
        turns = [
            turn
            for turn in row.get("conversations", row.get("messages"))
            if turn.get("from", turn.get("role")) in ("gpt", "assistant")
        ]
        for place, turn in enumerate(turns):
            said = turn.get("value", turn.get("content"))
            yield (number, place), said if isinstance(said, str) else "".join(part["value"] for part in said)


@pytest.mark.skipif(DATA is None, reason="the folder shared/data with the labelled files is not beside this checkout")
def test_precision_on_labelled_answers():
    met = {}
    for file, table in LABELLED.items():
        assert sha256((DATA / file).read_bytes()).hexdigest() == table["sha256"], (
            f"{file} is not the file that was labelled"
        )
        texts, known = dict(answers(file)), labels(file)
        assert len(texts) == table["answers"] and set(known) <= set(texts)
        met[file] = {key for key, text in texts.items() if refuses(text)}
        unread = met[file] - set(known)
        if file in CHINESE:
            unread |= {key for key, text in texts.items() if APOLOGY.search(text)} - set(known)
        assert not unread, f"{file}: read and label {sorted(unread)}"
    found = [labels(file)[key] for file in CHINESE for key in met[file]]
    refused = sum(label == "refusal" for file in CHINESE for label in labels(file).values())
    true = found.count("refusal")
    assert len(found) - true <= 2 and true / len(found) >= 0.95, f"{true} of {len(found)} met are refusals"
    assert true / refused >= 0.6, f"{true} of {refused} refusals are met"
    # Without a word of apology: at most two, so that a new pattern of that kind is looked at.
    assert sum(APOLOGY.search(dict(answers(file))[key]) is None for file in CHINESE for key in met[file]) <= 2
    for file in set(LABELLED) - set(CHINESE):
        assert {labels(file)[key] for key in met[file]} <= {"refusal"}
