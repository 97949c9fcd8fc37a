"""A home that was moved says where things lie now; a checkpoint that is not there is never fresh."""

import shutil
from pathlib import Path

import pytest

from srt_assets.core.lake import Lake
from srt_assets.core.students import checkpoints
from srt_assets.core.training import results, stage
from srt_assets.settings import Project
from tests.training_data import Bench, in_process, make_bench

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    found = make_bench(tmp_path / "home", epochs=1)
    stage.STAGE.run(found.settings, found.lake, "tiny", launch=in_process)
    return found


def never(command, env) -> int:
    raise AssertionError("nothing was to be trained")


def moved(bench: Bench, to: Path) -> Bench:
    shutil.move(bench.lake.home, to)
    settings = bench.settings.model_copy(update={"project": Project(home=to)})
    return Bench(Lake(to), settings, bench.n)


def trained(bench: Bench) -> Path:
    with bench.lake.connect() as con:
        ((path,),) = con.execute("SELECT path FROM training_runs").fetchall()
    return Path(path)


def state(bench: Bench) -> str:
    return stage.STAGE.state(bench.settings, bench.lake, "tiny").state


def test_a_moved_home_says_where_its_checkpoints_are(bench: Bench, tmp_path: Path) -> None:
    before = trained(bench)
    child = checkpoints.add(bench.settings, bench.lake, str(before), "second")
    assert child.source_now == str(before)
    there = moved(bench, tmp_path / "elsewhere")
    after = trained(there)
    assert after == there.lake.home / before.relative_to(tmp_path / "home") and after.is_dir()
    assert checkpoints.get(there.lake, "second").source_now == str(after)
    stage.STAGE.run(there.settings, there.lake, "tiny", launch=never)
    # Its rows are written anew, so that whoever reads the Parquet files finds it too.
    assert results.paths_in_parts(there.lake, "tiny") == {str(after)}
    # The same checkpoint under its new path is the same student, and no other takes its key.
    assert checkpoints.add(there.settings, there.lake, str(after), "second").fingerprint == child.fingerprint


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer.json", "all of it"])
def test_a_checkpoint_that_is_not_there_is_not_fresh(bench: Bench, lost: str) -> None:
    assert state(bench) == "fresh"
    path = trained(bench)
    if lost == "all of it":
        shutil.rmtree(path)
    else:
        (path / lost).unlink()
    assert state(bench) != "fresh"
    stage.STAGE.run(bench.settings, bench.lake, "tiny", launch=in_process)
    assert state(bench) == "fresh" and (trained(bench) / "model.safetensors").is_file()
