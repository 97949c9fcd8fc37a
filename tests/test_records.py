"""raw_dataset's stage: formats, ids, rejects with reasons, errors that name file and line."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from srt_assets.core.errors import UserError
from srt_assets.core.hashing import sample_id
from srt_assets.core.lake import Lake
from srt_assets.core.progress import throttled
from srt_assets.core.records import raw
from srt_assets.core.records.ids import NEW, Ids
from srt_assets.settings import Dataset, Settings

GOOD = {"instruction": "Name a colour.", "input": "", "output": "Red."}


def settings_for(*paths: Path, **more: object) -> Settings:
    return Settings(datasets=tuple(Dataset(name=f"d{i}", path=str(p), **more) for i, p in enumerate(paths)))


def write(path: Path, rows: list) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows))
    return path


def table(lake: Lake, sql: str) -> list[tuple]:
    con = lake.connect()
    try:
        return con.execute(sql).fetchall()
    finally:
        con.close()


def test_the_id_is_the_hash_of_the_json_array() -> None:
    text = '["Gr\u00fc\u00dfe", "", "a\\nb "]'
    assert sample_id("Grüße", "", "a\nb ") == hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_three_file_types_give_the_same_records(tmp_path: Path, lake: Lake, suffix: str) -> None:
    rows = [GOOD, {"instruction": "Add.", "input": "1 2", "output": "3"}]
    outcome = raw.STAGE.run(settings_for(write(tmp_path / f"a{suffix}", rows)), lake)
    assert not outcome.cached
    assert table(lake, "SELECT sample_id, dataset, input, response, source_index FROM raw_records ORDER BY 5") == [
        (sample_id("Name a colour.", "", "Red."), "d0", "", "Red.", 0),
        (sample_id("Add.", "1 2", "3"), "d0", "1 2", "3", 1),
    ]


def test_every_row_is_a_record_or_a_reject_with_a_reason(tmp_path: Path, lake: Lake) -> None:
    rows = [
        GOOD,
        dict(GOOD),
        {**GOOD, "output": "  \n"},
        {**GOOD, "instruction": ""},
        {**GOOD, "output": 7},
        {"instruction": "x", "input": None, "output": "kept: a null input is none"},
        {"instruction": "x"},
        {"output": "x"},
        "text",
        None,
        {**GOOD, "output": "\ud800"},
        {**GOOD, "input": "<noinput>"},
    ]
    outcome = raw.STAGE.run(settings_for(write(tmp_path / "a.json", rows)), lake)
    reasons = table(lake, "SELECT source_index, reason FROM raw_rejects ORDER BY 1")
    assert reasons == [
        (1, "duplicate"),
        (2, "empty_response"),
        (3, "empty_instruction"),
        (6, "missing_response"),
        (7, "missing_instruction"),
        (8, "not_an_object"),
        (9, "not_an_object"),
        (10, "invalid_text"),
    ]
    assert outcome.manifest.rows + len(reasons) == len(rows) == outcome.stats["rows_read"]
    assert table(lake, "SELECT input FROM raw_records WHERE source_index = 11") == [("<noinput>",)]


def test_conversations(tmp_path: Path, lake: Lake) -> None:
    def turns(*texts: str, roles: tuple[str, ...] = ("human", "gpt")) -> dict:
        pairs = zip(texts, roles * len(texts), strict=False)
        return {"conversations": [{"from": role, "value": text} for text, role in pairs]}

    rows = [turns("hi", "hello"), turns("a", "b", "c", "d"), turns("alone"), turns("x", "y", roles=("system", "human"))]
    file = write(tmp_path / "a.json", rows)
    raw.STAGE.run(settings_for(file), lake)
    assert table(lake, "SELECT instruction, response FROM raw_records") == [("hi", "hello")]
    assert table(lake, "SELECT reason FROM raw_rejects ORDER BY source_index") == [
        ("multi_turn",),
        ("no_reply",),
        ("system_prompt",),
    ]
    raw.STAGE.run(settings_for(file, multi_turn="first_turn"), lake)
    assert table(lake, "SELECT instruction FROM raw_records ORDER BY source_index") == [("hi",), ("a",)]


def test_messages_are_detected(tmp_path: Path, lake: Lake) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    raw.STAGE.run(settings_for(write(tmp_path / "m.jsonl", [{"messages": chat}])), lake)
    assert table(lake, "SELECT instruction, input, response FROM raw_records") == [("q", "", "a")]


def test_the_first_dataset_wins_a_duplicate_and_limit_counts_raw_rows(tmp_path: Path, lake: Lake) -> None:
    one = write(tmp_path / "one.json", [GOOD])
    two = write(tmp_path / "two.json", [{**GOOD, "output": ""}, GOOD, {**GOOD, "output": "Blue."}])
    raw.STAGE.run(settings_for(one, two, limit=2), lake)
    assert table(lake, "SELECT dataset FROM raw_records") == [("d0",)]
    assert table(lake, "SELECT dataset, reason FROM raw_rejects ORDER BY source_index") == [
        ("d1", "empty_response"),
        ("d1", "duplicate"),
    ]


def test_a_second_run_reads_nothing_and_a_changed_file_is_read_again(tmp_path: Path, lake: Lake) -> None:
    file = write(tmp_path / "a.json", [GOOD])
    first = raw.STAGE.run(settings_for(file), lake)
    assert raw.STAGE.run(settings_for(file), lake).cached
    write(file, [GOOD, {**GOOD, "output": "Blue."}])
    again = raw.STAGE.run(settings_for(file), lake)
    assert not again.cached and again.manifest.content_hash != first.manifest.content_hash


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "a.jsonl",
            '{"instruction": "a"}\n\n' + '{"instruction": \n' * 10,
            ["a.jsonl", "line 3", "broken JSON", "share"],
        ),
        ("a.json", '[{"instruction": "a"},\n {"b": }]', ["a.json", "line 2", "broken JSON"]),
        ("a.json", '{"a": 1}\n{"b": 2}\n', [".jsonl"]),
        ("a.json", '{"a": 1}', ["not a list"]),
        ("a.parquet", "PAR0", ["Parquet"]),
        ("a.txt", "a,b", [".jsonl", "a.txt"]),
    ],
)
def test_unreadable_files_are_one_clear_error(
    tmp_path: Path, lake: Lake, name: str, text: str, words: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        raw.STAGE.run(settings_for(tmp_path / name), lake)
    for word in words:
        assert word in str(caught.value)


def test_bytes_that_are_no_utf8(tmp_path: Path, lake: Lake) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"instruction": "\xff"}]')
    with pytest.raises(UserError, match="UTF-8"):
        raw.STAGE.run(settings_for(tmp_path / "a.json"), lake)


def test_bytes_that_are_no_utf8_in_a_long_file_are_found_by_their_line(tmp_path: Path, lake: Lake) -> None:
    good = json.dumps({"instruction": "é" * 50, "output": "y"}).encode() + b"\n"
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + good * 200 + b'{"instruction": "\xff"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 201: byte 18 of the line is not UTF-8"):
        raw.STAGE.run(settings_for(tmp_path / "a.jsonl"), lake)


def test_a_missing_file_and_no_dataset(tmp_path: Path, lake: Lake) -> None:
    with pytest.raises(UserError, match=r"nothing\.json"):
        raw.STAGE.run(settings_for(tmp_path / "nothing.json"), lake)
    with pytest.raises(UserError, match="no dataset"):
        raw.STAGE.run(Settings(), lake)


def test_what_was_read_before_survives_a_broken_file(tmp_path: Path, lake: Lake) -> None:
    file = write(tmp_path / "a.json", [GOOD])
    raw.STAGE.run(settings_for(file), lake)
    file.write_text("[")
    with pytest.raises(UserError):
        raw.STAGE.run(settings_for(file), lake)
    assert table(lake, "SELECT count(*) FROM raw_records") == [(1,)]


def test_a_dataset_without_any_record_is_warned_of_with_the_reasons(
    tmp_path: Path, lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    good = write(tmp_path / "good.json", [GOOD])
    odd = write(tmp_path / "odd.json", [{"Instruction": "Name a colour.", "Output": "Red."}] * 2)
    raw.STAGE.run(settings_for(good, odd), lake)
    [warning] = caplog.messages
    assert "'d1': 0 records from 2 rows; rejected: unknown_form 2" in warning and "Instruction, Output" in warning


def test_progress_of_unknown_length_is_throttled_and_the_last_word_is_not() -> None:
    heard: list[tuple[int, int]] = []
    report = throttled(lambda done, total, *_, **__: heard.append((done, total)), 10, clock=lambda: 0.0)
    for done, total in ((1, 0), (2, 0), (3, 9), (9, 9)):
        report(done, total)
    assert heard == [(1, 0), (9, 9)]


@examples(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 40) | st.integers(2**64 - 3, 2**64 - 1), max_size=30), max_size=12))
def test_an_id_is_new_once_however_they_come(chunks: list[list[int]]) -> None:
    ids, seen = Ids(), {}
    for place, chunk in enumerate(chunks):
        names = [f"{number:016x}" for number in chunk]
        expected = [seen.setdefault(name, place) for name in names]
        firsts = {name: at for at, name in reversed([*enumerate(names)]) if seen[name] == place}
        expected = [
            NEW if firsts.get(name) == at else of for at, (name, of) in enumerate(zip(names, expected, strict=True))
        ]
        assert ids.add(names, [place] * len(names)) == expected
