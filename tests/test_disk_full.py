"""A disk that is full, or takes nothing: said in one sentence, nothing is lost or done twice, the next run goes on."""

import errno
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from srt_assets.core import reserve
from srt_assets.core.errors import StageError, disk_full
from srt_assets.core.lake import Lake
from srt_assets.core.records import raw, writer
from srt_assets.core.scoring import pace
from srt_assets.core.scoring import run as scoring
from srt_assets.core.scoring import stage as scores
from srt_assets.core.scoring.describe import faults
from srt_assets.core.selection import decide
from srt_assets.core.tables import TABLES
from srt_assets.core.teacher import instructions
from srt_assets.core.training import job, keeper, stage, states
from srt_assets.core.training.main import run_job
from srt_assets.settings import Dataset
from tests.fake_openai import FakeOpenAI, Plan, good_reply
from tests.selection_lake import small_lake
from tests.small_disk import SmallDisk, small_disk
from tests.student_lake import RECORDS, make_lake, settings_for
from tests.teacher_home import both, home, records, table, with_teacher
from tests.training_data import make_bench


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", megabytes=24) as found:
        yield found


def said_of(error: BaseException) -> str:
    """What people read of it."""
    said = disk_full(error)
    assert said and said.exit_code == 1
    assert "no space left on the disk while writing" in said.message and "run again" in said.remedy
    return str(said)


def left_behind(lake: Lake) -> list[Path]:
    """What failed writes may leave: files of unusual names, and parts that nobody has committed."""
    odd = [p for p in lake.home.rglob("*") if ".writing" in p.name or p.name.startswith((".part", "._", ".srt.duckdb"))]
    named = {path for name in TABLES for path in lake.parts(name)}
    return [*odd, *(path for path in lake.root.rglob("part-*.parquet") if path not in named)]


def test_every_paid_reply_is_kept_and_none_is_paid_again(disk: SmallDisk, quick_teacher: None) -> None:
    """Those that are on their way when the disk is full come home too."""

    def plan(body: dict[str, Any], nth: int) -> Plan:
        if fake.calls == 40:
            disk.fill()
        return Plan(text=good_reply(body).replace("It is", "Well. " * 500 + "It is"), latency_s=0.02)

    with FakeOpenAI(plan) as fake:
        settings, lake = home(disk.path, 80, api_base=fake.base)
        with pytest.raises(OSError) as caught:
            both(settings, lake)
        paid = fake.calls
        assert "segment-" in said_of(caught.value) and 40 < paid < 80
        replies = "SELECT count(*), count(DISTINCT call_key) FROM teacher_calls WHERE status = 'ok'"
        assert table(lake, replies) == [(paid, paid)]
        assert "no space left" in instructions.STAGE.state(settings, lake).why and not left_behind(lake)
        disk.free()
        both(settings, lake)
        assert fake.calls == 3 * 80 and set(fake.paid.values()) == {1}
    assert table(lake, "SELECT DISTINCT status FROM candidates") == [("ok",)]


def test_without_room_for_replies_nobody_is_asked(disk: SmallDisk, quick_teacher: None) -> None:
    with FakeOpenAI() as fake:
        settings, lake = home(disk.path, 4, api_base=fake.base)
        talkative = with_teacher(settings, max_tokens=20_000)
        reserve.give_back(lake.home)
        disk.fill(left=200_000)
        with pytest.raises(OSError) as caught:
            both(talkative, lake)
        assert reserve.NAME in said_of(caught.value) and fake.calls == 0
        disk.free()
        both(talkative, lake)
        assert fake.calls == 12


def test_scored_rows_are_kept_and_not_scored_again(
    disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = make_lake(disk.path, source=tmp_path / "student")
    monkeypatch.setattr(pace, "_FIRST_CHARACTERS", 1)
    monkeypatch.setattr(pace.Pace, "learn", lambda *_: None)
    monkeypatch.setattr(scoring, "_FLUSH_S", 0.0)

    def progress(done: int, total: int, unit: str = "rows", **facts: object) -> None:
        if done == 3:
            disk.fill()

    with pytest.raises(OSError) as caught:
        scores.STAGE.run(settings_for(), lake, "tiny", progress)
    said_of(caught.value)
    kept = lake.manifest("student_scores", "student=tiny")
    # Also those that were in memory when the disk was full.
    assert kept and kept.rows == 4 * 3 and not left_behind(lake)
    assert "no space left" in scores.STAGE.state(settings_for(), lake, "tiny").why
    disk.free()
    outcome = scores.STAGE.run(settings_for(), lake, "tiny")
    assert outcome.stats["candidates_scored"] == 4 * len(RECORDS) - 4 * 3
    assert faults(lake, "tiny") == {"unsound_rows": 0, "candidates_without_row": 0, "double_rows": 0}


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 20_000, 90_000])
def test_a_training_goes_on_from_its_last_whole_state(
    disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """Nothing more can be written, or not the weights, or not the optimizer's state beside them."""
    bench = make_bench(disk.path / "home", source=tmp_path / "student", epochs=3)
    saved, started_from = keeper.Keeper.on_save, []

    def then_full(self: keeper.Keeper, args: Any, state: Any, control: Any, **more: Any) -> None:
        saved(self, args, state, control, **more)
        if state.global_step == 2 and len(started_from) == 1:
            disk.fill(left)

    def launch(command: Sequence[str], env: Mapping[str, str]) -> int:
        task = replace(job.Job.read(Path(command[-2])), save_every_s=0.0)
        state = states.last_state(task.states)
        started_from.append(state and state.name)
        return run_job(task, quiet=True)

    monkeypatch.setattr(keeper.Keeper, "on_save", then_full)
    with pytest.raises(StageError) as caught:
        stage.STAGE.run(bench.settings, bench.lake, "tiny", launch=launch)
    assert "no space left on the disk while writing" in caught.value.message
    assert "from the last state that was saved" in caught.value.remedy
    folder = bench.lake.home / "training" / "tiny"
    assert all((state / states.WHOLE).exists() for state in folder.glob("*/states/*")) and not left_behind(bench.lake)
    disk.free()
    stage.STAGE.run(bench.settings, bench.lake, "tiny", launch=launch)
    assert started_from == [None, "checkpoint-2"]


def test_a_dataset_that_does_not_fit_leaves_nothing_in_the_way(
    disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, lake = home(disk.path, 4)
    data = disk.path / "more.json"
    data.write_text(json.dumps(records(2000)))
    more = settings.model_copy(update={"datasets": (Dataset(name="d", path=str(data)),)})
    monkeypatch.setattr(writer, "CHUNK", 100)
    disk.fill(left=150_000)
    before = shutil.disk_usage(disk.path).free
    with pytest.raises(OSError) as caught:
        raw.STAGE.run(more, lake)
    said_of(caught.value)
    assert not left_behind(lake) and shutil.disk_usage(disk.path).free >= before - 20_000
    assert table(lake, "SELECT count(*) FROM raw_records") == [(4,)]
    disk.free()
    raw.STAGE.run(more, lake)
    assert table(lake, "SELECT count(*) FROM raw_records") == [(2000,)]


def test_a_selection_that_does_not_fit_is_made_when_there_is_room(disk: SmallDisk) -> None:
    lake, settings = small_lake(disk.path / "home"), settings_for()

    def progress(done: int, total: int, unit: str = "rows", **facts: object) -> None:
        disk.fill()

    with pytest.raises(OSError) as caught:
        decide.STAGE.run(settings, lake, "tiny", progress)
    said_of(caught.value)
    assert not left_behind(lake) and not lake.parts("selected_set")
    disk.free()
    assert decide.STAGE.run(settings, lake, "tiny").manifest.rows > 0


def test_a_disk_that_may_only_be_read_is_said_too(disk: SmallDisk) -> None:
    settings, lake = home(disk.path, 4)
    disk.read_only()
    (disk.path / "data.json").is_file()
    with pytest.raises(OSError) as caught:
        raw.STAGE.run(settings.model_copy(update={"datasets": ()}), lake)
    said = disk_full(caught.value)
    assert said and "the disk is read-only while writing" in said.message and "SRT_HOME" in said.remedy
    disk.read_only(False)
    assert raw.STAGE.run(settings, lake).cached


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/x/part.parquet"), "quota is used up while writing /x/part"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "no space left"),
        (RuntimeError('IO Error: Could not write file "/x/y.db": No space left on device'), "while writing /x/y.db"),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), "no space left"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), "read-only while writing /x/y"),
    ],
)
def test_the_words_of_every_library_are_understood(error: Exception, words: str) -> None:
    said = disk_full(error)
    assert said and words in said.message and "run again" in said.remedy


def test_the_room_that_is_kept_is_small_beside_a_small_disk(disk: SmallDisk) -> None:
    reserve.hold(disk.path)
    kept = disk.path / reserve.NAME
    assert 0 < kept.stat().st_size <= 24 * 2**20 / 16
    reserve.hold(disk.path, least=3 * 2**20)
    assert kept.stat().st_size == 3 * 2**20
    disk.fill()
    with pytest.raises(OSError) as caught:
        reserve.hold(disk.path, least=4 * 2**20)
    assert disk_full(caught.value)
    reserve.give_back(disk.path)
    assert not kept.exists()
