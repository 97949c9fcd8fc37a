"""A JSON array is read value by value as `json` reads it whole, wherever the buffer's end falls."""

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srt_assets.core.records.files.json_array import NotAnArray, NotUtf8, values

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
ODD = r'[NaN, -Infinity, 1e400, 12345678901234567890123, "\ud800", "😀", "", -0.0, 1E5, [], {}]'


def whole(text: str) -> object:
    """What json says of the text: a value, or where and what is wrong."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return (error.msg, error.lineno, error.colno)


def streamed(file: Path, chunk: int) -> object:
    try:
        return list(values(file, chunk=chunk))
    except json.JSONDecodeError as error:
        return (error.msg, error.lineno, error.colno)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(JSON, max_size=6), indent=st.sampled_from([None, 1]), chunk=st.integers(1, 40))
def test_any_array_is_read_as_json_reads_it(tmp_path_factory: pytest.TempPathFactory, rows, indent, chunk) -> None:
    file = tmp_path_factory.mktemp("json") / "a.json"
    file.write_text(json.dumps(rows, indent=indent, ensure_ascii=chunk % 2 == 0), "utf-8", "surrogatepass")
    assert streamed(file, chunk) == json.loads(file.read_text("utf-8"))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
def test_odd_values_are_json_s_own(tmp_path: Path, chunk: int) -> None:
    file = tmp_path / "a.json"
    file.write_text("\ufeff" + ODD, "utf-8")
    assert repr(streamed(file, chunk)) == repr(json.loads(ODD))


BROKEN = [
    "[",
    "[1",
    "[1,",
    "[1,]",
    "[1 2]",
    "[1] 2",
    "[1]]",
    '[{"a": 1\n "b": 2}]',
    '[\n {"a": "x\ny"}\n]',
    '["open',
    "[tru]",
    "[tru",
    "[1.]",
    "[1e]",
    "['a']",
    '[{"a" 1}]',
    '["\\x"]',
    '["\\u12"]',
    "[1,\n2,\n\n  x]",
    '{"a": 1}\n{"a": 2}',
]


@pytest.mark.parametrize("chunk", [1, 2, 5, 1 << 20])
@pytest.mark.parametrize("text", BROKEN)
def test_what_is_wrong_is_said_as_json_says_it(tmp_path: Path, text: str, chunk: int) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    said, right = streamed(file, chunk), whole(text)
    assert isinstance(said, tuple) and isinstance(right, tuple)
    assert said[1:] == right[1:] or right[0].startswith("Illegal trailing comma"), (said, right)
    assert said[0] == right[0] or text == "[1,]"


@pytest.mark.parametrize(
    ("text", "kind"), [('{"a": 1}', "object .*'a'"), ("7 ", "number"), ('"x"', "text"), ("null", "null")]
)
def test_one_value_is_no_array(tmp_path: Path, text: str, kind: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(NotAnArray, match=kind):
        list(values(tmp_path / "a.json", chunk=2))


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_file_has_no_rows_as_one_of_json_lines(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert list(values(tmp_path / "a.json")) == []


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_a_byte_that_is_not_utf_8_has_its_place_in_the_file(tmp_path: Path, chunk: int) -> None:
    data = '["é", "😀", "'.encode() + b"\xff" + b'"]'
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(NotUtf8) as told:
        list(values(tmp_path / "a.json", chunk=chunk))
    assert told.value.start == data.index(b"\xff")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    row = {"instruction": "x" * 200, "output": "y" * 800}

    def peak(n: int) -> int:
        file = tmp_path / f"{n}.json"
        file.write_text(json.dumps([row] * n))
        tracemalloc.start()
        assert sum(1 for _ in values(file)) == n
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(20_000) < 1.5 * peak(5_000)


def test_a_value_larger_than_the_buffer_is_read_in_a_few_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text(json.dumps([["word"] * 50_000, 1]))
    tries = 0
    scan = json.JSONDecoder.raw_decode

    def counted(self: json.JSONDecoder, *args) -> tuple:
        nonlocal tries
        tries += 1
        return scan(self, *args)

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counted)
    assert len(next(iter(values(tmp_path / "a.json", chunk=64)))) == 50_000
    assert tries < 20
