"""The sensor on the watched folder: whole checkpoints only, each content once, failures named."""

import json
import os
import shutil
from pathlib import Path

import dagster as dg
import pytest
from tiny_student import make_tiny_student

from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.scoring import stage as scores
from srt_assets.core.students import checkpoints, watch
from srt_assets.defs import names
from srt_assets.defs.arrivals import STUDENTS, new_student_checkpoints
from srt_assets.settings import Automation, Project, Settings


@pytest.fixture
def instance() -> dg.DagsterInstance:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "arrivals").mkdir()
    return tmp_path / "arrivals"


class Ticker:
    """Ticks the sensor as the daemon does: the cursor goes on, requested partitions and runs come into being."""

    def __init__(self, instance: dg.DagsterInstance, folder: Path, home: Path) -> None:
        self.instance = instance
        self.settings = Settings(project=Project(home=home), automation=Automation(enabled=True, watch=str(folder)))
        self.sensor = new_student_checkpoints(self.settings, tick_s=1)
        self.cursor: str | None = None
        self.skip = ""

    def tick(self, status: dg.DagsterRunStatus = dg.DagsterRunStatus.SUCCESS) -> list[str]:
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        result = self.sensor(context)
        self.cursor, self.skip = result.cursor, str(result.skip_reason or "")
        for request in result.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(STUDENTS, request.partition_keys)
        for request in result.run_requests or []:
            tags = {"dagster/run_key": request.run_key, "dagster/partition": request.partition_key}
            self.instance.create_run_for_job(job(), tags=tags, status=status)
            if status == dg.DagsterRunStatus.SUCCESS:
                watch.register(self.settings, Lake(self.settings.home), request.partition_key)
        return [request.partition_key for request in result.run_requests or []]


def job() -> dg.JobDefinition:
    @dg.asset(partitions_def=names.students)
    def anything() -> None: ...

    return dg.Definitions(assets=[anything]).resolve_implicit_global_asset_job_def()


def teacher_side(home: Path, complete: bool = True) -> None:
    for partition in scores.CANDIDATE_SLICES:
        Lake(home).commit(
            "candidates",
            [],
            fingerprint=Fingerprint.of(of="f"),
            code_version="1",
            partition=partition,
            complete=complete,
        )


@pytest.fixture
def ticker(instance: dg.DagsterInstance, folder: Path, home: Path) -> Ticker:
    teacher_side(home)
    return Ticker(instance, folder, home)


def test_an_empty_folder_is_said(ticker: Ticker) -> None:
    assert ticker.tick() == []
    assert "no checkpoint in" in ticker.skip


def test_a_checkpoint_runs_after_two_looks_alike_and_only_once(ticker: Ticker, folder: Path) -> None:
    make_tiny_student(folder / "Step 100")
    assert ticker.tick() == [] and "second look" in ticker.skip
    assert ticker.tick() == ["step-100"]
    assert ticker.instance.get_dynamic_partitions(STUDENTS) == ["step-100"]
    assert ticker.tick() == [] and "none new" in ticker.skip


def test_changed_content_runs_again_and_a_lost_cursor_runs_nothing_twice(ticker: Ticker, folder: Path) -> None:
    make_tiny_student(folder / "a", seed=0)
    ticker.tick()
    assert ticker.tick() == ["a"]
    ticker.cursor = None
    assert ticker.tick() == [] and ticker.tick() == []
    shutil.rmtree(folder / "a")
    make_tiny_student(folder / "a", seed=1)
    assert ticker.tick() == []
    assert ticker.tick() == ["a"]


def test_a_half_written_checkpoint_waits_until_it_is_whole(ticker: Ticker, folder: Path) -> None:
    make_tiny_student(folder / "c")
    weights = folder / "c" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    for _ in range(3):
        assert ticker.tick() == []
    assert "model.safetensors is cut short" in ticker.skip
    weights.write_bytes(data)
    assert ticker.tick() == []
    assert ticker.tick() == ["c"]


def test_a_missing_shard_waits(ticker: Ticker, folder: Path) -> None:
    make_tiny_student(folder / "s")
    (folder / "s" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}})
    )
    assert ticker.tick() == [] and ticker.tick() == []
    assert "model-2.safetensors" in ticker.skip


def test_an_unreadable_neighbour_holds_nobody_up(ticker: Ticker, folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "d" / "config.json").write_text("{")
    make_tiny_student(folder / "a")
    ticker.tick()
    assert ticker.tick() == ["a"]
    ticker.tick()
    assert "d: " in ticker.skip and "not valid JSON" in ticker.skip


def test_a_failed_student_is_named_with_the_way_to_resume(ticker: Ticker, folder: Path) -> None:
    make_tiny_student(folder / "a")
    ticker.tick()
    ticker.tick(status=dg.DagsterRunStatus.FAILURE)
    assert ticker.tick() == []
    assert "failed" in ticker.skip and "srt run --student a" in ticker.skip


def test_a_student_whose_failed_run_was_made_good_is_named_no_more(ticker: Ticker, folder: Path) -> None:
    make_tiny_student(folder / "a")
    ticker.tick()
    ticker.tick(status=dg.DagsterRunStatus.FAILURE)
    watch.register(ticker.settings, Lake(ticker.settings.home), "a")
    by_hand = {"dagster/partition": "a", "srt/command": "srt run"}
    ticker.instance.create_run_for_job(job(), tags=by_hand, status=dg.DagsterRunStatus.SUCCESS)
    assert ticker.tick() == [] and "failed" not in ticker.skip


def test_while_the_teacher_side_is_unfinished_a_student_waits_for_it(ticker: Ticker, folder: Path, home: Path) -> None:
    teacher_side(home, complete=False)
    make_tiny_student(folder / "a")
    ticker.tick()
    assert ticker.tick() == [] and "a: waiting for the teacher side" in ticker.skip
    assert ticker.instance.get_dynamic_partitions(STUDENTS) == ["a"], "the nightly run makes both"
    teacher_side(home)
    assert ticker.tick() == ["a"]
    assert ticker.tick() == []


def test_a_key_that_another_student_has_is_said_instead_of_run(ticker: Ticker, folder: Path, tmp_path: Path) -> None:
    make_tiny_student(tmp_path / "elsewhere")
    checkpoints.add(ticker.settings, Lake(ticker.settings.home), str(tmp_path / "elsewhere"), "mine")
    assert ticker.tick() == ["mine"]
    make_tiny_student(folder / "mine", seed=1)
    assert ticker.tick() == [] and ticker.tick() == []
    assert "mine: the student mine is another" in ticker.skip and str(tmp_path / "elsewhere") in ticker.skip
    (folder / "mine").rename(folder / "mine-too")
    ticker.tick()
    assert ticker.tick() == ["mine-too"]


def test_a_new_instance_over_an_old_home_finds_its_students(ticker: Ticker, tmp_path: Path) -> None:
    make_tiny_student(tmp_path / "elsewhere")
    checkpoints.add(ticker.settings, Lake(ticker.settings.home), str(tmp_path / "elsewhere"), "mine")
    assert ticker.tick() == ["mine"] and ticker.instance.get_dynamic_partitions(STUDENTS) == ["mine"]
    assert ticker.tick() == []


def test_a_new_home_under_an_old_instance_runs_its_students_once_more(ticker: Ticker, folder: Path, home: Path) -> None:
    make_tiny_student(folder / "a")
    ticker.tick()
    assert ticker.tick() == ["a"]
    assert ticker.tick() == []
    shutil.rmtree(home)
    teacher_side(home)
    assert ticker.tick(dg.DagsterRunStatus.STARTED) == ["a"]
    assert ticker.tick() == []
    watch.register(ticker.settings, Lake(home), "a")
    assert ticker.tick() == []


def test_names_that_no_storage_takes_are_written_so_that_it_does(ticker: Ticker, folder: Path) -> None:
    for name in (b"half \xff", b"\xff\xfe"):
        make_tiny_student(folder / "aside").rename(folder / os.fsdecode(name))
    make_tiny_student(folder / "nul")
    (folder / "nul" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x\0y"}}))
    assert ticker.tick() == [] and ticker.tick() == []
    ticker.skip.encode()
    assert "\\udcff" in ticker.skip and "not UTF-8" in ticker.skip and "\0" not in ticker.skip


def test_a_folder_of_hundreds_is_summed_up(ticker: Ticker, folder: Path) -> None:
    for number in range(300):
        (folder / f"log-{number}").mkdir()
    assert ticker.tick() == [] and "and 280 more" in ticker.skip and len(ticker.skip) < 10_000


def test_a_folder_that_is_not_there_is_said(ticker: Ticker, folder: Path) -> None:
    folder.rmdir()
    assert ticker.tick() == [] and "there is no folder" in ticker.skip


def test_a_student_added_by_command_runs_once_even_if_its_run_failed(
    ticker: Ticker, folder: Path, tmp_path: Path
) -> None:
    make_tiny_student(tmp_path / "elsewhere")
    checkpoints.add(ticker.settings, Lake(ticker.settings.home), str(tmp_path / "elsewhere"), "mine")
    ticker.instance.add_dynamic_partitions(STUDENTS, ["mine", "of-another-home"])
    assert ticker.tick(dg.DagsterRunStatus.FAILURE) == ["mine"]
    assert ticker.tick() == [] and ticker.tick() == []
    assert "mine: run" in ticker.skip and "srt run --student mine" in ticker.skip


def test_no_folder_set_is_said(instance: dg.DagsterInstance, home: Path) -> None:
    sensor = new_student_checkpoints(Settings(project=Project(home=home)), tick_s=1)
    result = sensor(dg.build_sensor_context(instance=instance))
    assert "automation.watch is not set" in str(result.skip_reason)


# -- students from the hub, listed in a file


def cache(monkeypatch: pytest.MonkeyPatch, hub: Path, repository: str, revision: str, seed: int) -> None:
    """A model as the hub's own cache holds it, under a revision."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    model = hub / f"models--{repository.replace('/', '--')}"
    commit = f"{seed:040x}"
    make_tiny_student(model / "snapshots" / commit, seed=seed)
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs" / revision).write_text(commit)


def test_a_listed_student_is_registered_at_its_revision_and_runs_again_at_another(
    ticker: Ticker, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache(monkeypatch, tmp_path / "hub", "org/small", "step-1", seed=1)
    cache(monkeypatch, tmp_path / "hub", "org/small", "step-2", seed=2)
    seen = []
    for revision in ("step-1", "step-2"):
        (folder / "students.toml").write_text(f'small = "org/small@{revision}"\n')
        assert ticker.tick() == [] and "second look" in ticker.skip
        assert ticker.tick() == ["small"]
        watch.register(ticker.settings, Lake(ticker.settings.home), "small")
        seen.append(checkpoints.get(Lake(ticker.settings.home), "small"))
    assert [info.revision for info in seen] == [f"{1:040x}", f"{2:040x}"]
    assert seen[0].fingerprint != seen[1].fingerprint and seen[1].source == "org/small@step-2"
    assert ticker.tick() == [] and "none new" in ticker.skip


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a = 7", "no hub id"),
        ('a = "no such/thing here"', "no checkpoint directory"),
        ('a = "../no/such/place"', "no checkpoint directory"),
        ("a = ", "no valid TOML"),
        ('a.b = "org/name"', "no hub id"),
        ('same = "org/name"', "same key"),
        (f'a = "{"x" * 5000}"', "no checkpoint directory"),
        ('a = "~no-such-user/x"', "home folder of a user who has none"),
        ('a = "x\\u0000"', "no checkpoint directory"),
    ],
)
def test_a_bad_line_is_named_and_holds_nobody_up(ticker: Ticker, folder: Path, line: str, why: str) -> None:
    make_tiny_student(folder / "same")
    (folder / "students.toml").write_text(f"{line}\n")
    ticker.tick()
    assert ticker.tick() == ["same"]
    ticker.tick()
    assert "students.toml" in ticker.skip and why in ticker.skip
