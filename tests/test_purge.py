"""What a retired student has made, deleted: all of it, nothing else, and whoever is killed in the middle finishes."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import duckdb
import pytest
from selection_lake import small_lake
from tiny_student import make_tiny_student

from srt_assets.cli import main
from srt_assets.core import damage, purge
from srt_assets.core.errors import StageError, UserError
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.selection import decide
from srt_assets.core.sql.catalog import path_of, publish
from srt_assets.core.students import checkpoints, folders, retire, retired, sources
from srt_assets.core.students.stage import STAGE
from srt_assets.core.training import finished, job
from srt_assets.settings import Project, Settings

TABLES = (
    "student_scores",
    "settled_scores",
    "decisions",
    "policy_decisions",
    "policies",
    "selected_set",
    "training_runs",
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home: students a and b with all they can have; a is retired."""
    root = tmp_path_factory.mktemp("template")
    settings, lake = at(root)
    small_lake(lake.home, students=("a", "b"))
    calls = [{"call_key": "k", "attempt": 1, "status": "ok", "reply": "paid"}]
    part = lake.write_part("teacher_calls", calls)
    lake.commit("teacher_calls", [part], fingerprint=Fingerprint.of(of="f"), code_version="1")
    for seed, slug in enumerate("ab"):
        checkpoints.add(settings, lake, str(make_tiny_student(root / f"source-{slug}", seed=seed)), slug)
        STAGE.run(settings, lake, slug)
        decide.STAGE.run(settings, lake, slug)
        for number in range(2):
            place = make_tiny_student(finished.directory(lake, slug) / f"run-{number}", seed=number)
            facts = {"finished_at": "2026-01-01T00:00:00+00:00", "training_fingerprint": "f", "left_out": {}}
            (place / job.RECORD).write_text(json.dumps(facts))
        mark = Fingerprint.of(of="f")
        for table, row in (("training_runs", {"run": "run-1"}), ("settled_scores", {"sample_id": "s"})):
            part = lake.write_part(table, [{"student": slug, **row}], f"student={slug}")
            lake.commit(table, [part], fingerprint=mark, code_version="1", partition=f"student={slug}")
        (lake.home / "training" / slug / "0123").mkdir(parents=True)
        (lake.home / "training" / slug / "0123" / "job.json").write_text("{}")
    retire.retire(settings, lake, "a")
    return root


def at(root: Path) -> tuple[Settings, Lake]:
    settings = Settings(project=Project(home=root / "home"))
    return settings, Lake(settings.home)


@pytest.fixture
def lake(template: Path, tmp_path: Path) -> Lake:
    """A copy of it. Links of students lead to the sources, which are the template's."""
    shutil.copytree(template, tmp_path / "site", symlinks=True)
    return at(tmp_path / "site")[1]


def rows(lake: Lake, student: str) -> dict[str, int]:
    with lake.connect() as con:
        return {
            table: con.execute(f"SELECT count(*) FROM {table} WHERE student = ?", [student]).fetchall()[0][0]
            for table in TABLES
        }


def published(lake: Lake, query: str) -> list[tuple]:
    with duckdb.connect(str(path_of(lake)), read_only=True) as con:
        return con.execute(query).fetchall()


def gone(lake: Lake) -> None:
    """Nothing of a is left but its record; everything else is as it was."""
    assert set(rows(lake, "a").values()) == {0} and 0 not in rows(lake, "b").values()
    assert {path.parent.parent.name for path in lake.home.glob("lake/*/student=a/*")} == {"students"}
    assert not finished.directory(lake, "a").exists() and not (lake.home / "training" / "a").exists()
    assert [path.name for path in (lake.home / "students" / "a").iterdir()] == [folders.RECORD]
    assert len(list(finished.directory(lake, "b").glob("*/model.safetensors"))) == 2
    with lake.connect() as con:
        assert con.execute("SELECT count(*) FROM candidates").fetchall() == [(32,)]
        assert con.execute("SELECT reply FROM teacher_calls").fetchall() == [("paid",)]
    assert published(lake, "SELECT DISTINCT student FROM student_scores") == [("b",)]
    assert published(lake, "SELECT student FROM students WHERE retired_at IS NOT NULL") == [("a",)]
    assert retired.every(lake)["a"].purged and purge.find(lake, "a") == []


def test_all_it_has_made_goes_and_nothing_else(lake: Lake, template: Path) -> None:
    listed = purge.find(lake, "a")
    assert [item.what.partition(":")[0] for item in listed] == [
        "training_runs",
        "selected_set",
        "policy_decisions",
        "decisions",
        "policies",
        "settled_scores",
        "student_scores",
        "finetuned checkpoints",
        "unfinished trainings",
        "links to its files, or what they were converted to",
    ]
    assert "student_scores: 32 rows" in [item.what for item in listed]
    weights = (template / "source-a" / "model.safetensors").stat().st_size
    [trained] = [item for item in listed if item.what == "finetuned checkpoints: 2"]
    assert 2 * weights < trained.size and listed[-1].size < weights, "links have no size of their own"
    purge.purge(lake, "a")
    gone(lake)
    assert (template / "source-a" / "model.safetensors").exists()
    assert not list(damage.find(lake))
    purge.purge(lake, "a")
    gone(lake)


def test_it_comes_back_as_new_and_its_key_is_free(lake: Lake, template: Path) -> None:
    settings = at(lake.home.parent)[0]
    with pytest.raises(UserError, match="is taken by"):
        checkpoints.add(settings, lake, str(template / "source-b"), "a")
    purge.purge(lake, "a")
    checkpoints.add(settings, lake, str(template / "source-b"), "a")
    STAGE.run(settings, lake, "a")
    with lake.connect() as con:
        [(source, at_)] = con.execute("SELECT source, retired_at FROM students WHERE student = 'a'").fetchall()
    assert source == str(template / "source-b") and at_ is None


def test_it_is_refused_while_a_finetuned_student_needs_it(lake: Lake) -> None:
    settings = at(lake.home.parent)[0]
    checkpoints.add(settings, lake, str(finished.directory(lake, "a") / "run-1"), "child")
    assert checkpoints.get(lake, "child").parent == "a"
    for _ in range(2):
        with pytest.raises(UserError, match="child was finetuned from a"):
            purge.purge(lake, "a")
        assert 0 not in rows(lake, "a").values()
        retire.retire(settings, lake, "child")  # it could still be brought back
    purge.purge(lake, "child")
    purge.purge(lake, "a")
    assert set(rows(lake, "a").values()) == {0} and not finished.directory(lake, "a").exists()


def test_it_is_refused_while_a_run_holds_it(lake: Lake) -> None:
    with lake.lock("selected_set", "student=a"), pytest.raises(StageError, match="goes on"):
        purge.purge(lake, "a")
    assert 0 not in rows(lake, "a").values() and len(purge.find(lake, "a")) == 10


def test_what_somebody_reads_stays_until_they_are_done(lake: Lake) -> None:
    with lake.connect() as con:
        with pytest.raises(StageError, match="is being read"):
            purge.purge(lake, "a")
        assert con.execute("SELECT count(*) FROM student_scores WHERE student = 'a'").fetchall() == [(32,)]
    assert set(rows(lake, "a").values()) == {0} and not retired.every(lake)["a"].purged
    assert not finished.directory(lake, "a").exists()
    del con
    purge.purge(lake, "a")
    gone(lake)


class Killed(BaseException): ...


def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies at its nth deletion, before it or (for a folder) with one file of it gone."""
    left = [steps]
    unlink = Path.unlink

    def step() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    def one(path: Path, missing_ok: bool = False) -> None:
        step()
        unlink(path, missing_ok=missing_ok)

    def many(path: Path, *_: object, **__: object) -> None:
        for file in sorted(Path(path).rglob("*"), reverse=True):
            step()
            file.rmdir() if file.is_dir() and not file.is_symlink() else unlink(file)
        step()
        Path(path).rmdir()

    monkeypatch.setattr(Path, "unlink", one)
    monkeypatch.setattr(shutil, "rmtree", many)


@pytest.mark.parametrize("steps", [1, 5, 12, 14, 30, 45])
def test_whoever_is_killed_in_the_middle_leaves_nothing_half_counted(
    lake: Lake, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(lake)
    whole = rows(lake, "a")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(steps, patch)
        purge.purge(lake, "a")
    now = rows(lake, "a")
    assert all(now[table] in (0, whole[table]) for table in TABLES)
    # What is left is what a student has that is made as far as some stage.
    order = ("student_scores", "decisions", "training_runs")
    assert [now[table] for table in order] == sorted((now[table] for table in order), key=lambda n: n == 0)
    assert not list(damage.find(lake)) and all(run.record for run in finished.all_of(lake, "a"))
    published(lake, "SELECT * FROM decisions JOIN selected_set USING (student, sample_id)")
    assert rows(lake, "b") == whole
    purge.purge(lake, "a")
    gone(lake)


# -- the command


@pytest.fixture
def command(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:
    monkeypatch.setenv("SRT_HOME", str(lake.home))
    with dg.instance_for_test():  # sets DAGSTER_HOME
        yield lake


def srt(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["srt", *words])
        main()
    return int(ended.value.code or 0)


def test_it_lists_asks_and_says_what_stays(
    command: Lake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_aside = command.home / "damaged" / "20260101T000000" / "checkpoints" / "b"
    set_aside.mkdir(parents=True)
    assert srt("students", "remove", "b", "--purge") == 2
    told = capsys.readouterr()
    assert "student_scores: 32 rows" in told.out and "no terminal to ask" in told.err
    assert f"stays: {set_aside}" in told.out and "the teacher's ledger" in told.out
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda _: False)
    assert srt("students", "remove", "b", "--purge") == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert checkpoints.list_students(command) == ["b"], "nor is it retired"
    assert srt("students", "remove", "a", "--purge", "--yes") == 0
    assert "deleted: " in capsys.readouterr().out
    gone(command)
    assert srt("students", "list") == 0
    assert "purged" in " ".join(capsys.readouterr().out.split())
    assert srt("students", "remove", "b") == 0
    assert "srt students remove b --purge deletes them" in capsys.readouterr().out


def test_a_run_that_has_not_begun_holds_it_too(command: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    @dg.op
    def nothing() -> None: ...

    @dg.job
    def later() -> None:
        nothing()

    with dg.DagsterInstance.get() as instance:
        waits = dg.DagsterRunStatus.NOT_STARTED
        run = instance.create_run_for_job(later, tags={"dagster/partition": "a"}, status=waits)
    assert srt("students", "remove", "a", "--purge", "--yes") == 1
    assert f"the run {run.run_id[:8]} of a goes on" in capsys.readouterr().err
    assert 0 not in rows(command, "a").values()
    assert srt("students", "remove", "b") == 0 and srt("students", "remove", "a") == 0
    assert f"The run {run.run_id[:8]} of it goes on" in capsys.readouterr().out


def test_the_packaged_student_is_built_again_when_it_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(project=Project(home=tmp_path / "home"))
    lake = Lake(settings.home)
    monkeypatch.setattr(sources, "convert_packaged", make_tiny_student)
    before = checkpoints.add(settings, lake, "smollm2")
    for _ in range(2):
        retire.retire(settings, lake, "smollm2")
        purge.purge(lake, "smollm2")
        assert not (before.path / "config.json").exists()
        again = checkpoints.add(settings, lake, "smollm2")
        assert again.fingerprint == before.fingerprint and (again.path / "model.safetensors").is_file()
