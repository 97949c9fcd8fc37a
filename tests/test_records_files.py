"""Files of every kind to rows: packed, CSV, lists in objects, lines that cannot be read. Nothing is lost silently."""

import gzip
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.records import raw
from srt_assets.core.records.files import csv_rows, lines, unreadable
from srt_assets.core.records.files.find import SUFFIXES, dataset_files
from srt_assets.core.records.files.read import read_rows, sources
from srt_assets.core.records.files.unreadable import Unreadable, within
from srt_assets.settings import Dataset, Project, Settings

LINES = b'{"a": 1}\n{"a": 2}\n'
VALUES = [{"a": 1}, {"a": 2}]


def zstd(data: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(data)
    return packed.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd}


def rows(file: Path, data: bytes | str, **more: str) -> list:
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return [row for _, row in read_rows(file, **more)]


def dataset_rows(dataset: Dataset, files: list[Path]) -> Iterator[tuple[int, object]]:
    for name, of_it in sources(dataset, files):
        yield from within(dataset.max_bad_share, name, of_it)


def said(file: Path, data: bytes | str, **more: str) -> str:
    """The one sentence about a file that cannot be read; it names the file."""
    with pytest.raises(UserError) as told:
        rows(file, data, **more)
    assert file.name in told.value.message and "\n" not in told.value.message
    return str(told.value)


def reasons(found: list) -> list[str]:
    return [row.reason if isinstance(row, Unreadable) else "" for row in found]


# -- names and packings


@pytest.mark.parametrize("name", ["a.jsonl", "a.NDJSON", "a.b.trees.jsonl", "A.JSONL"])
@pytest.mark.parametrize("packing", [".gz", ".zst", ".GZ"])
def test_a_packed_file_is_what_is_in_it(tmp_path: Path, name: str, packing: str) -> None:
    pack = PACK[packing.lower()]
    assert rows(tmp_path / (name + packing), pack(LINES)) == VALUES
    empty = pack(b"")
    assert rows(tmp_path / (name + packing), empty + pack(LINES) + empty + pack(LINES)) == VALUES * 2


@pytest.mark.parametrize("packing", PACK)
def test_a_packed_file_is_read_whole_or_named(tmp_path: Path, packing: str) -> None:
    data, file = PACK[packing](LINES * 50), tmp_path / f"a.jsonl{packing}"
    for cut in (0, 1, 5, len(data) // 2, len(data) - 1):
        said(file, data[:cut])
    for behind in (b"x", b"rubbish behind it", b"\0" * 600, data[:7]):
        said(file, data + behind)
    assert "line 1 is longer than" in _with_short_lines(lambda: said(file, PACK[packing](b"x" * 3_000_000)))


def _with_short_lines(act: Callable[[], str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "LONGEST_LINE", 1 << 20)
        return act()


def test_what_a_name_does_not_say(tmp_path: Path) -> None:
    for name in ("a.gz", "a.txt.gz", "a.tar.gz", "a.txt", "a.jsonl.bz2", "a"):
        (tmp_path / name).write_bytes(LINES)
        with pytest.raises(UserError, match=r"ends in none of .*\.csv"):
            dataset_files(Dataset(name="d", path=str(tmp_path / name)))
    with pytest.raises(UserError, match="hf = 'tatsu-lab/alpaca'"):
        dataset_files(Dataset(name="d", path=str(tmp_path / "tatsu-lab" / "alpaca")))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        # Without the time of day: each process that runs tests must collect the same names.
        (gzip.compress(LINES, mtime=0), "gzip"),
        (zstd(LINES), "zstd"),
        (b"PK\x03\x04", "zip"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (LINES.decode().encode("utf-16"), "UTF-16"),
        (LINES.decode().encode("utf-16-be"), "UTF-8"),
        (LINES.decode().encode("utf-32"), "UTF-32"),
    ],
    ids=["gzip", "zstd", "zip", "lfs", "utf-16", "utf-16-be", "utf-32"],
)
@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix not in (".parquet", ".arrow")])
def test_what_a_file_really_is(tmp_path: Path, suffix: str, data: bytes, words: str) -> None:
    assert words in said(tmp_path / f"a{suffix}", data)
    assert words in said(tmp_path / f"a{suffix}.gz", gzip.compress(data))


@pytest.mark.parametrize("packing", ["", *PACK])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
def test_the_sum_is_that_of_the_file_as_it_lies_there(tmp_path: Path, lake: Lake, suffix: str, packing: str) -> None:
    texts = {
        ".jsonl": '{"instruction": "a", "output": "b"}\n',
        ".csv": "instruction,output\na,b\n",
        ".json": '{"data": [{"instruction": "a", "output": "b"}]}',
    }
    file = tmp_path / f"a{suffix}{packing}"
    file.write_bytes(PACK.get(packing, bytes)(texts[suffix].encode()))
    settings = Settings(project=Project(home=lake.home), datasets=(Dataset(name="d", path=str(file)),))
    assert raw.STAGE.run(settings, lake).manifest.rows == 1
    assert raw.STAGE.run(settings, lake).cached


# -- JSON


def nested(depth: int, inner: str) -> str:
    return '{"a": ' + "[" * depth + inner + "]" * depth + "}"


def test_rows_that_json_would_lose_or_break_on(tmp_path: Path) -> None:
    bad = [
        '{"a": {"b": 1, "b": 1}}',
        nested(300, "1"),
        nested(5_000, '"]} \\" {["'),
        f'{{"a": {"9" * 5_000}}}',
    ]
    good = ['{"a": NaN, "b": "\\ud800", "c": 1e400}', f'{{"a": {"9" * 4_000}}}']
    expected = ["duplicate_key", "too_deep", "too_deep", "big_integer", "", ""]
    found = rows(tmp_path / "a.jsonl", "\n".join(bad + good))
    assert reasons(found) == expected
    assert [row.detail[:6] for row in found[:4]] == ["line 1", "line 2", "line 3", "line 4"]
    assert found[0].text.strip() == bad[0] and all(len(row.text) <= unreadable.KEPT for row in found[:4])
    assert repr(found[4]) == "{'a': nan, 'b': '\\ud800', 'c': inf}" and found[5]["a"] == 10**4_000 - 1
    again = rows(tmp_path / "a.json", "[" + ",\n".join(bad + good) + "]")
    assert reasons(again) == expected and [row.detail for row in again[:4]] == [row.detail for row in found[:4]]


@pytest.mark.parametrize("limit", [0, 640])
def test_python_s_own_limit_of_digits_may_be_another(tmp_path: Path, limit: int) -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(limit)
    try:
        assert reasons(rows(tmp_path / "a.jsonl", "9" * 4_301)) == ["big_integer"]
        assert reasons(rows(tmp_path / "a.jsonl", "9" * 641)) == ["big_integer" if limit else ""]
    finally:
        sys.set_int_max_str_digits(before)


def test_an_array_is_read_on_behind_a_deep_value_wherever_the_buffer_ends(tmp_path: Path) -> None:
    from srt_assets.core.records.files.json_array import values

    file = tmp_path / "a.json"
    deep = nested(2_000, '"\\\\" , "]\\"é" ')
    file.write_text(f'[1, {deep}, {{"b": 2}}]')
    for chunk in (1, 3, 7, 1 << 20):
        found = list(values(file, chunk=chunk))
        assert reasons(found) == ["", "too_deep", ""] and found[2] == {"b": 2}
    assert "never closed" in said(file, "[1, " + '{"a":' * 5_000)


def test_a_file_of_nothing_and_one_of_objects_over_several_lines(tmp_path: Path) -> None:
    for name, text in (("a.json", ""), ("b.json", " \n"), ("c.json", "\ufeff"), ("d.jsonl", "")):
        (tmp_path / name).write_text(text)
        assert list(read_rows(tmp_path / name)) == []
    (tmp_path / "e.json").write_text("null")
    with pytest.raises(UserError, match="one null"):
        list(read_rows(tmp_path / "e.json"))
    pretty = json.dumps({"instruction": "a", "output": "b"}, indent=1)
    (tmp_path / "f.jsonl").write_text(pretty)
    assert "on one line" in next(read_rows(tmp_path / "f.jsonl"))[1].detail
    (tmp_path / "g.json").write_text(f"{pretty}\n{pretty}")
    with pytest.raises(UserError, match="commas between"):
        list(read_rows(tmp_path / "g.json"))
    (tmp_path / "h.json.gz").write_text(pretty)
    with pytest.raises(UserError, match="not packed with gzip"):
        list(read_rows(tmp_path / "h.json.gz"))


def test_a_bad_line_is_given_and_reading_goes_on(tmp_path: Path) -> None:
    found = rows(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": \nnot JSON\n{"a": 1} {"a": 2}\n{"a": 2}')
    assert reasons(found) == ["", "bad_json", "bad_json", "bad_json", ""]
    assert found[1].detail.startswith("line 3, column ") and found[2].text == "not JSON\n"
    assert rows(tmp_path / "a.jsonl", LINES.replace(b"\n", b"\r")) == VALUES
    assert reasons(rows(tmp_path / "a.jsonl", b'{"a": 1}\r{"a"\r')) == ["", "bad_json"]
    for line in (found[1], found[2]):
        assert line.reason in unreadable.REASONS


def test_bad_bytes_name_file_and_line(tmp_path: Path) -> None:
    for name, data in {
        "a.jsonl": b'{"a": 1}\n{"a": "\xe9"}\n',
        "a.csv": b"a\n\xe9\n",
        "a.json": b'[{"a": "\n1"},'.replace(b"\n", b"") + b'\n{"a": "\xe9"}]',
    }.items():
        assert "line 2" in said(tmp_path / name, data)


def test_an_object_that_holds_one_list_of_objects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "a.json"
    text = '{"version": "1", "tags": ["x", ["y"]], "data": [{"a": 1}, {"a": 2}, 3], "more": {"list": [{"b": 1}]}}'
    assert rows(file, text) == [*VALUES, 3]
    assert rows(file, "\ufeff\n " + text) == [*VALUES, 3]
    assert all("'data'" in message and "a.json" in message for message in caplog.messages) and len(caplog.messages) == 2
    caplog.clear()
    for text, words in {
        '{"train": [{"a": 1}], "test": [{"a": 2}]}': ["'train'", "'test'"],
        '{"data": [{"a": 1}], "data": [{"a": 2}]}': ["'data'"],
        '{"a": [], "b": ["x"], "c": 3}': ["'a'", "'b'", "'c'"],
        "{}": ["none"],
        '{"data": [{"a": 1}]}\n{"data": [{"a": 2}]}': ["line 2", ".jsonl"],
        '{"data": [{"a": 1}],}': ["line 1", "property name"],
        '{"data": [{"a": 1}]': ["line 1", "delimiter"],
        '{"data": [{"a": 1} {"a": 2}]}': ["line 1", "delimiter"],
        '{"data" [{"a": 1}]}': ["line 1", "delimiter"],
    }.items():
        message = said(file, text)
        for word in words:
            assert word in message
    assert not caplog.messages


# -- CSV


def test_texts_of_csv_stay_as_they_are(tmp_path: Path) -> None:
    text = '\ufeffinstruction,output\r\n00123,NA\r\n"a\r\nb ""c"", d", \n\n,\nü,1e5\n'
    expected = [("00123", "NA"), ('a\r\nb "c", d', " "), ("", ""), ("ü", "1e5")]
    assert [tuple(row.values()) for row in rows(tmp_path / "a.csv", text)] == expected
    assert list(rows(tmp_path / "a.csv", text)[0]) == ["instruction", "output"]
    assert rows(tmp_path / "a.tsv", "a\tb\n1,2\t3") == [{"a": "1,2", "b": "3"}]
    assert rows(tmp_path / "a.csv", "a;b\n1,2;3\n", delimiter=";") == [{"a": "1,2", "b": "3"}]
    assert rows(tmp_path / "a.csv", "sep=;\na;b\n1,2;3\n") == [{"a": "1,2", "b": "3"}]
    assert rows(tmp_path / "a.csv", 'a,b\r1,"2\r3"\r4,5') == [{"a": "1", "b": "2\r3"}, {"a": "4", "b": "5"}]
    assert rows(tmp_path / "a.csv", ",a\n0,x\n") == [{"": "0", "a": "x"}]
    long = "x" * 1_000_000
    assert rows(tmp_path / "a.csv", f"a\n{long}\n") == [{"a": long}]
    assert rows(tmp_path / "a.csv", "a,b\n") == rows(tmp_path / "a.csv", "") == []


@pytest.mark.parametrize("split", [1, 2, 3, 5, 1 << 16])
def test_line_ends_of_csv_are_the_same_wherever_the_buffer_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: int
) -> None:
    monkeypatch.setattr(lines, "_CHUNK", split)
    text = 'a,b\r\n1,"x\r\ny"\r2,"z\n\r"\n\r\n3,\n'
    expected = [{"a": "1", "b": "x\r\ny"}, {"a": "2", "b": "z\n\r"}, {"a": "3", "b": ""}]
    assert rows(tmp_path / "a.csv", text) == expected
    assert rows(tmp_path / "a.csv", text + "4\r\n")[3].detail.startswith("line 9:")


def test_rows_of_csv_that_do_not_fit_the_header(tmp_path: Path) -> None:
    found = rows(tmp_path / "a.csv", 'a,b\n1,2\n"x\ny"\n1,2,3\n1,\0\n3,4\n')
    assert reasons(found) == ["", "wrong_cells", "wrong_cells", "bad_value", ""]
    assert [row.detail[:6] for row in found[1:4]] == ["line 3", "line 5", "line 6"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('a,b\n1,2\n3,"x\n4,5\n6,7\n', "line 3: a quote in the row that begins here"),
        ('sep=,\na,b\n3,"x\n', "line 3: a quote in the row that begins here"),
        ('a,b\n1,"x\ny"z\n3,4\n', "line 3: broken quotes in the row that begins in line 2"),
        ("a,b,a\n1,2,3\n", "two columns are named 'a'"),
        ("a;b\n1;2\n", 'delimiter = ";"'),
        ("a\tb\n1\t2\n", 'delimiter = "\\t"'),
    ],
)
def test_where_reading_csv_ends(tmp_path: Path, text: str, words: str) -> None:
    assert words in said(tmp_path / "a.csv", text)


def test_a_quote_that_takes_in_the_rest_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import csv

    before = csv.field_size_limit(1 << 20)
    monkeypatch.setattr(csv_rows, "LONGEST_CELL", 1 << 20)
    try:
        message = said(tmp_path / "a.csv", 'a,b\n1,2\n3,"x\n' + "4,5\n" * 400_000)
    finally:
        csv.field_size_limit(before)
    assert "line 3: a cell has more than 1 million characters" in message


# -- how many rows may be bad


def bad_lines(bad: int, good: int) -> str:
    return "x\n" * bad + '{"a": 1}\n' * good


@pytest.mark.parametrize(
    ("bad", "good", "share", "stops"),
    [
        (9, 0, 0.05, False),
        (10, 0, 0.05, True),
        (10, 190, 0.05, False),
        (10, 189, 0.05, True),
        (60, 60, 0.5, False),
        (11, 0, 1.0, False),
        (10, 9_000, 0.0, True),
    ],
)
def test_a_file_of_too_many_bad_lines_stops_with_one_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: int, good: int, share: float, stops: bool
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 0}\n' + bad_lines(bad, good - 1) if good else bad_lines(bad, 0))
    dataset = Dataset(name="d", path=str(file), max_bad_share=share)
    if not stops:
        assert len(list(dataset_rows(dataset, [file]))) == bad + good
        [message] = caplog.messages
        assert f"bad_json: {bad}" in message and "a.jsonl" in message
        return
    with pytest.raises(UserError) as told:
        list(dataset_rows(dataset, [file]))
    words = ["a.jsonl", f"{bad} of {bad + good:,} rows", "line 1" if not good else "line 2", "max_bad_share"]
    assert all(word in str(told.value) for word in words), str(told.value)
    assert not caplog.messages


def test_a_file_of_nothing_else_is_not_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(bad_lines(5_000, 20))
    seen = 0
    with pytest.raises(UserError, match=r"1,000 of 1,000 rows"):
        for _ in dataset_rows(Dataset(name="d", path=str(file)), [file]):
            seen += 1
    assert seen == 999
    file.write_text('{"a": 1}\n' * 600 + bad_lines(500, 20_000))
    assert len(list(dataset_rows(Dataset(name="d", path=str(file)), [file]))) == 21_100


def test_bad_rows_are_rejects_with_their_text(tmp_path: Path, lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    file = tmp_path / "a.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "ü\n')
    settings = Settings(project=Project(home=lake.home), datasets=(Dataset(name="d", path=str(file)),))
    outcome = raw.STAGE.run(settings, lake)
    assert outcome.stats["rows_read"] == 2 and outcome.stats["rejected_bad_json"] == 1
    with lake.connect() as con:
        found = con.execute("SELECT source_index, reason, raw FROM raw_rejects").fetchall()
    assert [place[:2] for place in found] == [(1, "bad_json")] and json.loads(found[0][2]) == '{"instruction": "ü\n'


@pytest.mark.parametrize("limit", [1, 3, 5])
def test_a_limit_counts_over_files_and_bad_rows(tmp_path: Path, lake: Lake, limit: int) -> None:
    good = '{"instruction": "%s", "output": "b"}\n'
    (tmp_path / "a.jsonl").write_text(good % "x" + "x\n")
    (tmp_path / "b.jsonl").write_text("".join(good % number for number in range(9)))
    dataset = Dataset(name="d", path=str(tmp_path / "*.jsonl"), limit=limit)
    outcome = raw.STAGE.run(Settings(project=Project(home=lake.home), datasets=(dataset,)), lake)
    assert outcome.stats["rows_read"] == limit and outcome.manifest.rows == limit - (limit > 1)


# -- anything at all

PIECES = st.lists(
    st.sampled_from([b'{"a": 1}', b"[", b"]", b"{", b"}", b'"', b",", b"\n", b"\r", b";", b":", b"\\", b"a,b", b"\0"])
    | st.sampled_from(
        [b"\xff", "é".encode(), "\ufeff".encode(), b"9" * 5_000, b"[" * 1_200, b'{"b":2,"b":3}', b"\x1f\x8b"]
    )
    | st.binary(max_size=6),
    max_size=25,
).map(b"".join)


@settings(deadline=None, max_examples=150)
@example(data=b"", suffix=".csv", packing="")
@given(
    data=PIECES,
    suffix=st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow"]),
    packing=st.sampled_from(["", ".gz", ".zst"]),
)
def test_any_bytes_are_rows_or_one_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str, packing: str
) -> None:
    file = tmp_path_factory.getbasetemp() / f"any{suffix}{packing}"
    for stored in (data, PACK[packing](data)) if packing else (data,):
        try:
            found = rows(file, stored)
        except UserError as error:
            assert file.name in error.message
        else:
            assert all(row.reason in unreadable.REASONS for row in found if isinstance(row, Unreadable))
