"""Parquet, Arrow and hub sets to rows: every type to what JSON knows, damage in one sentence, a set at its commit."""

import gzip
import io
import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.records import raw
from srt_assets.core.records.files import arrow_rows, hub
from srt_assets.core.records.files.read import read_rows
from srt_assets.core.records.files.unreadable import NotText, Unreadable
from srt_assets.settings import Dataset, Project, Settings

COMMIT, OTHER = "a" * 40, "b" * 40


def parquet(table: pa.Table, **more: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **more)
    return file.getvalue()


def arrow(table: pa.Table, new: Any = pa.ipc.new_stream) -> bytes:
    file = io.BytesIO()
    with new(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def rows(file: Path, data: bytes) -> list:
    file.write_bytes(data)
    return [row for _, row in read_rows(file)]


TURNS = {"role": ["user", "assistant"], "content": ["q", "a"]}
COLUMNS = {
    "text": (pa.array(["a", None]), ["a", None]),
    "large": (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
    "word": (pa.array(["a", "a"]).dictionary_encode(), ["a", "a"]),
    "nothing": (pa.nulls(2), [None, None]),
    "yes": (pa.array([True, None]), [True, None]),
    "money": (pa.array([Decimal("1.50"), None], pa.decimal128(5, 2)), ["1.50", None]),
    "when": (pa.array([datetime(2020, 1, 2), None], pa.timestamp("us")), ["2020-01-02T00:00:00", None]),
    "day": (pa.array([date(2020, 1, 2), None]), ["2020-01-02", None]),
    "bytes": (pa.array(["é".encode(), None]), ["é", None]),
    "fixed": (pa.array([b"ab", None], pa.binary(2)), ["ab", None]),
    "map": (
        pa.array([[("k", b"v"), ("l", None)], None], pa.map_(pa.string(), pa.binary())),
        [{"k": "v", "l": None}, None],
    ),
    "numbers": (pa.array([[(1, "v")], None], pa.map_(pa.int8(), pa.string())), [[[1, "v"]], None]),
    "twice": (
        pa.array([[("k", "v"), ("k", "w")], None], pa.map_(pa.string(), pa.string())),
        [[["k", "v"], ["k", "w"]], None],
    ),
    "turns": (
        pa.array([TURNS, {"role": ["user"], "content": []}]),
        [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], {"role": ["user"], "content": []}],
    ),
    "lists": (pa.array([[{"b": b"x"}, None], None]), [[{"b": "x"}, None], None]),
    "json_text": (pa.array(['[{"role": "user"}]', None]), ['[{"role": "user"}]', None]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_value_of_every_type(tmp_path: Path, name: str) -> None:
    column, expected = COLUMNS[name]
    table = pa.table({name: column, "n": [1, 2]})
    for file, data in {"a.parquet": parquet(table), "a.arrow": arrow(table)}.items():
        found = rows(tmp_path / file, data)
        assert [row[name] for row in found] == expected and [row["n"] for row in found] == [1, 2]
        json.dumps(found)


def test_a_column_that_says_it_is_json(tmp_path: Path) -> None:
    column = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['[{"role": "user"}]', "{", None, '{"a": 1, "a": 2}']))
    found = rows(tmp_path / "a.arrow", arrow(pa.table({"x": column})))
    assert [row["x"] for row in found] == [[{"role": "user"}], "{", None, '{"a": 1, "a": 2}']


def test_bytes_that_are_no_text_are_no_text(tmp_path: Path) -> None:
    [row] = rows(tmp_path / "a.parquet", parquet(pa.table({"a": [b"\xff\xfe"], "b": ["x"]})))
    assert isinstance(row["a"], NotText) and row["b"] == "x" and not isinstance(row["a"], str | bytes)
    assert json.loads(json.dumps(row, default=str))["a"] == "<2 bytes that are not text>"


def test_values_that_python_cannot_hold(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffb")]
    )
    found = rows(tmp_path / "a.parquet", parquet(pa.table({"s": texts, "n": [1, 2, 3]})))
    assert found[0] == {"s": "a", "n": 1} and found[2] == {"s": "b", "n": 3}
    assert isinstance(found[1], Unreadable) and found[1].reason == "bad_value" and "'s'" in found[1].detail
    assert json.loads(found[1].text) == {"n": 2}
    [far] = rows(tmp_path / "a.parquet", parquet(pa.table({"t": pa.array([2**62], pa.timestamp("ms"))})))
    assert isinstance(far, Unreadable)


def test_packed_and_empty_ones(tmp_path: Path) -> None:
    table = pa.table({"a": ["x", "y"]})
    for new in (pa.ipc.new_stream, pa.ipc.new_file):
        assert rows(tmp_path / "a.arrow.gz", gzip.compress(arrow(table, new))) == [{"a": "x"}, {"a": "y"}]
    assert rows(tmp_path / "a.PARQUET.gz", gzip.compress(parquet(table))) == [{"a": "x"}, {"a": "y"}]
    assert rows(tmp_path / "a.parquet", parquet(table.slice(0, 0))) == []
    assert rows(tmp_path / "a.arrow", arrow(table.slice(0, 0))) == []


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_file_that_is_damaged_or_cut_short(tmp_path: Path, kind: str) -> None:
    table = pa.table({"a": [f"{n:_>50}" for n in range(500)]})
    data = parquet(table) if kind == "parquet" else arrow(table)
    file = tmp_path / f"a.{kind}"
    middle = len(data) // 2
    ends = [data[:n] for n in (0, 3, 10, middle, len(data) - 1, len(data) - 8)]
    for bad in [*ends, b"\0" * 3 + data, b"rubbish"]:
        with pytest.raises(UserError) as told:
            rows(file, bad)
        assert file.name in told.value.message and "\n" not in told.value.message
    with pytest.raises(UserError, match="gzip"):
        rows(file, gzip.compress(data))
    with pytest.raises(UserError, match="lfs"):
        rows(file, b"version https://git-lfs.github.com/spec/v1\n")


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    twice = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    within = pa.table({"x": pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["b", "b"])})
    for table, words in ((twice, "are named 'a'"), (within, "within 'x' are named 'b'")):
        with pytest.raises(UserError, match=f"a.parquet: two columns.*{words}"):
            rows(tmp_path / "a.parquet", parquet(table))


def test_batches_are_as_small_as_rows_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Once in the file, a thousand times in memory.
    monkeypatch.setattr(arrow_rows, "_TOGETHER", 1 << 20)
    sizes = []
    rows_of = arrow_rows.rows_of
    monkeypatch.setattr(arrow_rows, "rows_of", lambda batch: sizes.append(batch.nbytes) or rows_of(batch))
    table = pa.table({"a": ["x" * 100_000] * 300})
    assert len(rows(tmp_path / "a.parquet", parquet(table))) == 300
    assert max(sizes) < 1_200_000
    small = pa.table({"a": ["x"] * 5_000})
    sizes.clear()
    rows(tmp_path / "a.parquet", parquet(small))
    assert len(sizes) == 5


# -- the hub


class Hub:
    """Stands in for load_dataset and the hub's answer about commits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple] = []
        self.newest: str | Exception = COMMIT
        self.loads: Any = datasets.Dataset.from_list([{"instruction": "a", "output": "b"}])
        monkeypatch.setattr(datasets, "load_dataset", self.load)
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", self.info)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
        hub._commit.cache_clear()

    def load(self, *args: Any, **kwargs: Any) -> Any:
        self.asked.append((args, kwargs))
        if isinstance(self.loads, Exception):
            raise self.loads
        return self.loads

    def info(self, name: str, revision: str | None = None, **_: Any) -> Any:
        if isinstance(self.newest, Exception):
            raise self.newest
        return type("Info", (), {"sha": self.newest})


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


def settings_of(lake: Lake, **more: Any) -> Settings:
    return Settings(project=Project(home=lake.home), datasets=(Dataset(name="d", hf="org/set", **more),))


def test_a_set_stays_at_the_commit_it_was_first_read_at(lake: Lake, there: Hub) -> None:
    assert raw.STAGE.run(settings_of(lake), lake).manifest.rows == 1
    assert there.asked == [(("org/set",), {"split": "train", "revision": COMMIT})]
    for newest in (OTHER, ConnectionError("offline")):
        there.newest = newest
        hub._commit.cache_clear()
        assert raw.STAGE.run(settings_of(lake), lake).cached
    manifest = lake.manifest("raw_records")
    assert manifest and manifest.inputs["datasets"][0]["hub"]["commit"] == COMMIT
    assert not raw.STAGE.run(settings_of(lake, revision=OTHER), lake).cached
    assert there.asked[-1][1]["revision"] == OTHER


def test_config_revision_and_files_are_asked_for_and_noted(lake: Lake, there: Hub) -> None:
    given = {"config": "all", "revision": "v1", "data_files": ("a.jsonl", "b.jsonl")}
    raw.STAGE.run(settings_of(lake, **given), lake)
    more = {"name": "all", "revision": COMMIT, "data_files": ["a.jsonl", "b.jsonl"]}
    assert there.asked == [(("org/set",), {"split": "train", **more})]
    assert raw.STAGE.run(settings_of(lake, **given), lake).cached
    for other in ({"config": "x"}, {"data_files": "a.jsonl"}, {"revision": "v2"}, {"split": "test"}):
        assert raw.STAGE.state(settings_of(lake, **given | other), lake).state == "changed", other


def test_a_home_of_an_older_program_is_not_stale(lake: Lake, there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(hub, "facts", lambda dataset, known: [dataset.hf, dataset.split])
        raw.STAGE.run(settings_of(lake), lake)
    assert there.asked[0][1] == {"split": "train"}
    there.newest = AssertionError("nobody asks the network")
    assert raw.STAGE.state(settings_of(lake), lake).state == "fresh"
    assert raw.STAGE.state(settings_of(lake, split="test", revision=OTHER), lake).state == "changed"


def test_without_a_network(
    lake: Lake, there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there.newest = ConnectionError("offline")
    assert hub.commit_in(hub.facts(settings_of(lake).datasets[0], {})) == ""
    assert "org/set" in caplog.text and "datasets.revision" in caplog.text
    raw.STAGE.run(settings_of(lake), lake)
    assert there.asked == [(("org/set",), {"split": "train"})]
    there.newest = COMMIT
    hub._commit.cache_clear()
    assert raw.STAGE.run(settings_of(lake), lake).cached
    # What the hub's cache knows.
    there.newest = ConnectionError("offline")
    (refs := tmp_path / "datasets--org--set" / "refs").mkdir(parents=True)
    (refs / "main").write_text(OTHER)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub._commit.cache_clear()
    assert hub.commit_in(hub.facts(settings_of(lake).datasets[0], {})) == OTHER


def test_a_set_in_the_library_s_cache_is_read_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "org___set" / "default" / "0.0.0" / COMMIT
    rows = datasets.Dataset.from_list([{"a": "x", "turns": [{"role": "user"}]}] * 3)
    split = {"train": datasets.SplitInfo("train", num_examples=3)}
    place.mkdir(parents=True)
    (place / "set-train.arrow").write_bytes(arrow(rows.data.table))
    info = datasets.DatasetInfo(features=rows.features, splits=datasets.SplitDict(split), builder_name="json")
    info.config_name, info.dataset_name, info.version = "default", "set", "0.0.0"
    info.write_to_directory(str(place))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    dataset = Dataset(name="d", hf="org/set")
    expected = [{"a": "x", "turns": [{"role": "user"}]}] * 3
    assert list(hub.read_hub(dataset)) == list(hub.read_hub(dataset, COMMIT)) == expected
    with pytest.raises(UserError, match="only commit aaaaaaaaaaaa is on this machine, not bbbbbbbbbbbb"):
        list(hub.read_hub(dataset, OTHER))


@pytest.mark.parametrize(
    ("error", "hf", "words"),
    [
        (
            RuntimeError("Dataset scripts are no longer supported, but found set.py"),
            "org/set",
            "it is a loading script",
        ),
        (RuntimeError("something else"), "org/set", "something else"),
        (datasets.exceptions.DatasetNotFoundError("no such set"), "org/set", "check the name"),
        (FileNotFoundError("none"), "data/mine.jsonl", "path = 'data/mine.jsonl'"),
        (FileNotFoundError("none"), "./mine", "path = './mine'"),
    ],
)
def test_a_set_that_cannot_be_had_is_one_sentence(there: Hub, error: Exception, hf: str, words: str) -> None:
    there.loads = error
    with pytest.raises(UserError, match="dataset 'd': cannot load") as told:
        list(hub.read_hub(Dataset(name="d", hf=hf)))
    assert words in str(told.value) and "\n" not in told.value.message


def test_rows_of_a_set_are_as_those_of_files(there: Hub) -> None:
    features = datasets.Features({"json": datasets.Json(), "image": datasets.Image(), "text": datasets.Value("string")})
    row = {"json": {"a": [1]}, "image": {"bytes": b"\xff\xd8", "path": None}, "text": "x"}
    there.loads = datasets.Dataset.from_list([row], features=features)
    [found] = hub.read_hub(Dataset(name="d", hf="org/set"))
    assert found["json"] == {"a": [1]} and found["text"] == "x" and isinstance(found["image"]["bytes"], NotText)


@pytest.mark.parametrize(
    "wrong", [{"path": "a", "config": "x"}, {"hf": "a/b", "delimiter": ";"}, {"path": "a", "delimiter": ";;"}]
)
def test_settings_that_do_not_fit(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"of datasets with|pattern"):
        Dataset(name="d", **wrong)
