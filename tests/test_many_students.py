"""What `srt status` does for each student: no SQL parsed twice, no manifest read twice, no data file opened."""

import shutil
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
import sqlglot
from selection_lake import small_lake
from tiny_student import make_tiny_student

from srt_assets.core import integrity, looks, manifest
from srt_assets.core.lake import Lake
from srt_assets.core.one_look import once_a_look, one_look
from srt_assets.core.records.files import inputs
from srt_assets.core.selection import decide
from srt_assets.core.sql import models
from srt_assets.core.status import standings
from srt_assets.core.students import checkpoints, watch
from srt_assets.core.students import stage as students
from srt_assets.core.training import results
from srt_assets.core.training import stage as training
from srt_assets.settings import Automation, Dataset, Project, Settings

SLUGS = ("a", "b")


@pytest.fixture
def settings(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(looks, "SETTLED_S", -60.0)
    (tmp_path / "d.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    watched = Automation(watch=str(tmp_path / "watched"))
    datasets = (Dataset(name="d", path=str(tmp_path / "d.jsonl")),)
    return Settings(project=Project(home=home), datasets=datasets, automation=watched)


@pytest.fixture
def made(settings: Settings, tmp_path: Path) -> Lake:
    """Two students that have selected and trained."""
    lake = small_lake(settings.home, SLUGS)
    one = make_tiny_student(tmp_path / "one")
    for slug in SLUGS:
        checkpoints.add(settings, lake, str(shutil.copytree(one, tmp_path / "watched" / slug)), slug)
        for stage in (students.STAGE, decide.STAGE):
            stage.run(settings, lake, slug)
        shutil.copytree(one, lake.home / "checkpoints" / slug / "run")
        commit_training(settings, lake, slug, {results.RUNS: "run"})
    return lake


def commit_training(settings: Settings, lake: Lake, slug: str, stats: dict[str, str]) -> None:
    rows = [{"student": slug, "run": "run", "path": str(lake.home / "checkpoints" / slug / "run")}]
    for table in reversed(training.STAGE.tables):
        lake.commit(
            table,
            [lake.write_part(table, rows, f"student={slug}")],
            fingerprint=training.STAGE.wanted(settings, lake, slug),
            code_version="1",
            partition=f"student={slug}",
            stats=stats,
        )


def states(settings: Settings, lake: Lake, asset: str) -> list[str]:
    return [s.state for s in standings(settings, lake, SLUGS) if s.asset == asset and s.student]


def test_a_status_parses_once_reads_each_manifest_once_and_no_data(
    settings: Settings, made: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    standings(settings, made, SLUGS)  # what is remembered is remembered
    integrity._seen.clear()
    models.canonical.cache_clear()
    parsed, read = [], Counter[Path]()
    parse, read_manifest = sqlglot.parse_one, manifest.read

    def counted(directory: Path, *rest: str) -> manifest.Manifest | None:
        read[directory] += 1
        return read_manifest(directory, *rest)

    monkeypatch.setattr(sqlglot, "parse_one", lambda *args, **more: parsed.append(1) or parse(*args, **more))
    monkeypatch.setattr(manifest, "read", counted)
    for module, name in ((duckdb, "connect"), (pq, "read_table"), (integrity, "file_sha256"), (inputs, "file_sha256")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("a data file is read"))
    found = standings(settings, made, SLUGS)
    assert len(found) == 3 + 4 * len(SLUGS)
    assert len(parsed) == 3, "the rule and the models it reads, for all students together"
    assert max(read.values()) == 1 and len(read) > 4 * len(SLUGS)


def test_a_deleted_checkpoint_is_seen_by_its_name_in_the_manifest(settings: Settings, made: Lake) -> None:
    assert states(settings, made, "selected_set") == ["changed"] * 2  # the scores are of no stage
    assert results.current(made, "b") == [made.home / "checkpoints" / "b" / "run"]
    assert [training.STAGE.is_there(made, slug) for slug in SLUGS] == [True, True]
    shutil.rmtree(made.home / "checkpoints" / "b" / "run")
    assert [training.STAGE.is_there(made, slug) for slug in SLUGS] == [True, False]
    # An older program named the runs in the rows only.
    commit_training(settings, made, "a", {})
    assert results.current(made, "a") == [made.home / "checkpoints" / "a" / "run"]
    shutil.rmtree(made.home / "checkpoints" / "a" / "run")
    assert not training.STAGE.is_there(made, "a")
    assert results.current(made, "nobody") == []


def test_one_watched_student_is_looked_for_alone(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slug in SLUGS:
        make_tiny_student(tmp_path / "watched" / slug)
    looked_at: list[str] = []
    found = watch._found
    monkeypatch.setattr(watch, "_found", lambda value: looked_at.append(Path(value).name) or found(value))
    assert [*watch.offered(settings, "b")] == ["b"] == looked_at
    assert [*watch.offered(settings)] == [*SLUGS]


def test_what_was_asked_in_a_look_is_asked_again_after_it() -> None:
    asked: list[str] = []

    @once_a_look
    def ask(what: str) -> int:
        asked.append(what)
        if what == "bad":
            raise ValueError(what)
        return len(asked)

    assert (ask("a"), ask("a")) == (1, 2)
    with one_look():
        with one_look():
            assert ask("a") == 3
        assert ask("a") == 3, "the look lasts as long as the outer one"
        for _ in range(2):
            with pytest.raises(ValueError, match="bad"):
                ask("bad")
    assert ask("a") == 6
