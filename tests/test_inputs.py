"""The settings' files by their SHA-256: trusted while they look the same, and hashed by a run as it reads."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srt_assets.core import looks
from srt_assets.core.errors import StageError, UserError
from srt_assets.core.hashing import file_sha256
from srt_assets.core.lake import Lake
from srt_assets.core.records import raw
from srt_assets.core.records.files import inputs
from srt_assets.core.records.forms import meaning
from srt_assets.settings import Dataset, Project, Settings

ROWS = [{"instruction": f"Do thing {i}", "input": "", "output": f"Thing {i}"} for i in range(30)]
SUFFIXES = (".jsonl", ".json", ".parquet")


def write(file: Path, rows: list[dict] = ROWS) -> Path:
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text(json.dumps(rows) if file.suffix == ".json" else "".join(json.dumps(r) + "\n" for r in rows))
    return file


def settings_of(home: Path, *paths: Path, **more: int) -> Settings:
    datasets = tuple(Dataset(name=f"d{i}", path=str(path), **more) for i, path in enumerate(paths))
    return Settings(project=Project(home=home), datasets=datasets)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read only for their sum."""
    found: list[str] = []
    monkeypatch.setattr(inputs, "file_sha256", lambda path: found.append(path.name) or file_sha256(path))
    return found


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every file had been written long ago."""
    monkeypatch.setattr(looks, "SETTLED_S", -60.0)


@pytest.mark.usefixtures("settled")
def test_status_reads_a_file_only_if_it_looks_otherwise(tmp_path: Path, lake: Lake, reads: list[str]) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.parquet"):
        write(tmp_path / name)
    settings = settings_of(lake.home, tmp_path / "*.jsonl", tmp_path / "c.parquet")
    raw.STAGE.run(settings, lake)
    reads.clear()

    def read() -> list[str]:
        reads.clear()
        raw.STAGE.state(settings, lake)
        return [*reads]

    assert read() == []
    assert raw.STAGE.state(settings, lake).state == "fresh"
    os.utime(tmp_path / "a.jsonl")
    assert read() == ["a.jsonl"] and read() == []
    assert raw.STAGE.state(settings, lake).state == "fresh"
    # As long as before, of the same time: the system's own time of change tells.
    before = (tmp_path / "b.jsonl").stat()
    write(tmp_path / "b.jsonl", [{**ROWS[0], "output": "Thing X"}, *ROWS[1:]])
    os.utime(tmp_path / "b.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (tmp_path / "b.jsonl").stat().st_size == before.st_size
    assert raw.STAGE.state(settings, lake).state == "changed"
    write(tmp_path / "new").replace(tmp_path / "c.parquet")
    assert "c.parquet" in read()
    looks.memory_of(lake.home, "inputs").write_text("{ not JSON")
    assert read() == ["a.jsonl", "b.jsonl", "c.parquet"] and read() == []


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path, lake: Lake, reads: list[str]) -> None:
    settings = settings_of(lake.home, write(tmp_path / "a.jsonl"))
    lake.home.mkdir()
    for _ in range(2):
        raw.STAGE.wanted(settings, lake)
    assert reads == ["a.jsonl"] * 2, "it may change within the same tick of the clock"


@pytest.mark.parametrize(("modified_s", "changed_s", "known"), [(-3, -3, True), (-1, -3, False), (-3, -1, False)])
def test_two_seconds_are_enough(modified_s: int, changed_s: int, known: bool) -> None:
    at = 10**18
    assert looks.is_settled([5, at + modified_s * 10**9, at + changed_s * 10**9, 7], at) is known


@pytest.mark.usefixtures("settled")
def test_whoever_only_looks_makes_no_home(tmp_path: Path, lake: Lake) -> None:
    raw.STAGE.state(settings_of(lake.home, write(tmp_path / "a.jsonl")), lake)
    assert not lake.home.exists()


def test_the_fingerprint_is_that_of_the_bytes(tmp_path: Path, lake: Lake) -> None:
    file = write(tmp_path / "a.jsonl")
    want = raw.STAGE.wanted(settings_of(lake.home, file, file), lake)
    assert [facts["files"] for facts in want.facts["datasets"]] == [[file_sha256(file)]] * 2


def _append(file: Path) -> None:
    with file.open("ab") as end:
        end.write(b"\n")


def _replace(file: Path) -> None:
    write(file.with_name(f"new{file.suffix}"), ROWS[:3]).replace(file)


def _write_in_place(file: Path) -> None:
    middle = file.stat().st_size // 2
    with file.open("r+b") as same:
        same.seek(middle)
        byte = same.read(1)
        same.seek(middle)
        same.write(bytes([byte[0] ^ 1]))


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", [_append, _replace, _write_in_place])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("limit", [0, 10])
def test_a_run_fails_whose_file_changes_meanwhile(
    tmp_path: Path,
    lake: Lake,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    suffix: str,
    limit: int,
) -> None:
    file = write(tmp_path / f"a{suffix}")
    settings = settings_of(lake.home, file, limit=limit)
    read_row, seen = meaning.read_row, []

    def meanwhile(*arguments):
        seen.append(arguments)
        if len(seen) == 5:
            change(file)
        return read_row(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(meaning, "read_row", meanwhile)
        with pytest.raises(StageError, match=f"a{suffix} was changed while it was read"):
            raw.STAGE.run(settings, lake)
    assert len(seen) >= 5 and lake.manifest("raw_records") is None
    assert not list(lake.directory("raw_records").glob("part-*"))
    if change is _append and suffix == ".jsonl":
        assert raw.STAGE.run(settings, lake).manifest.rows == (limit or len(ROWS))


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_wrong_memory_is_not_believed_twice(tmp_path: Path, lake: Lake, suffix: str) -> None:
    """What was read is compared with what was remembered; a memory that is wrong must not fail every run."""
    file = write(tmp_path / f"a{suffix}")
    memory = looks.memory_of(lake.home, "inputs")
    looks.remember(memory, {str(file): [*looks.looks(file.stat()), "0" * 64]})
    settings = settings_of(lake.home, file)
    with pytest.raises(StageError, match="changed"):
        raw.STAGE.run(settings, lake)
    assert raw.STAGE.run(settings, lake).manifest.rows == len(ROWS)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    settings = settings_of(lake.home, write(tmp_path / "a.jsonl"))
    monkeypatch.setattr(inputs, "file_sha256", refuses)
    with pytest.raises(UserError, match=r"cannot read .*a\.jsonl: Permission denied"):
        raw.STAGE.wanted(settings, lake)
    assert raw.STAGE.state(settings, lake).state == "missing"
