"""A retired student: in no list, sensor, schedule or run; what it made stays; its files do not bring it back."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from selection_lake import small_lake
from tiny_student import make_tiny_student

from srt_assets.cli import main
from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.parquet import row_content_hash
from srt_assets.core.status import standings
from srt_assets.core.students import checkpoints, folders, retired, watch
from srt_assets.core.students.retire import retire
from srt_assets.core.students.stage import STAGE
from srt_assets.core.tables import TABLES
from srt_assets.definitions import build_defs
from srt_assets.defs import names, retirement
from srt_assets.defs.arrivals import new_student_checkpoints
from srt_assets.defs.automation import nightly
from srt_assets.defs.execute import materialize
from srt_assets.settings import Automation, Project, Settings

STUDENTS = names.students.name or ""


class Site:
    """A home with the scores of `a`, which is of the watched folder, and of `b`, which was added by command."""

    def __init__(self, root: Path, instance: dg.DagsterInstance, checkpoints_of: Path) -> None:
        self.instance, self.cursor, self.skip = instance, None, ""
        self.folder = root / "arrivals"
        self.folder.mkdir()
        home = root / "home"
        self.settings = Settings(
            project=Project(home=home), automation=Automation(enabled=True, watch=str(self.folder))
        )
        self.lake = small_lake(home, students=("a", "b"))
        self.sources = {"a": self.folder / "a", "b": root / "b"}
        for slug, source in self.sources.items():
            shutil.copytree(checkpoints_of / slug, source)
            self.add(slug)
            STAGE.run(self.settings, self.lake, slug)

    def add(self, slug: str) -> None:
        """As the command does."""
        retirement.forget(self.lake, self.instance, slug)
        was_out = retired.get(self.lake, slug)
        checkpoints.add(self.settings, self.lake, str(self.sources[slug]), slug)
        if was_out:
            retired.note_return(self.lake, slug)
        retirement.add_partitions(self.lake, self.instance, [slug])

    def settle(self) -> list[str]:
        return retirement.settle(self.settings, self.lake, self.instance)

    def tick(self) -> list[str]:
        """The sensor looks: who is asked for. Their runs have succeeded a moment later."""
        sensor = new_student_checkpoints(self.settings, tick_s=1)
        found = sensor(dg.build_sensor_context(instance=self.instance, cursor=self.cursor))
        self.cursor, self.skip = found.cursor, str(found.skip_reason or "")
        for request in found.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(STUDENTS, request.partition_keys)
        for request in found.run_requests or []:
            tags = {"dagster/run_key": request.run_key, "dagster/partition": request.partition_key}
            self.instance.create_run_for_job(job(), tags=tags, status=dg.DagsterRunStatus.SUCCESS)
        return [request.partition_key for request in found.run_requests or []]

    def ticks(self, times: int = 3) -> set[str]:
        return {slug for _ in range(times) for slug in self.tick()}

    def nightly(self) -> list[str]:
        when = datetime(2030, 1, 1, 2, tzinfo=UTC)
        found = nightly(self.settings)(dg.build_schedule_context(self.instance, scheduled_execution_time=when))
        return [request.partition_key for request in found] if isinstance(found, list) else []

    def partitions(self) -> list[str]:
        return sorted(self.instance.get_dynamic_partitions(STUDENTS))

    def retired_at(self) -> dict[str, bool]:
        """Who is retired, as SQL says it."""
        with self.lake.connect() as con:
            return dict(con.execute("SELECT student, retired_at IS NOT NULL FROM students").fetchall())


def job() -> dg.JobDefinition:
    @dg.asset(partitions_def=names.students)
    def anything() -> None: ...

    return dg.Definitions(assets=[anything]).resolve_implicit_global_asset_job_def()


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed, slug in enumerate(("a", "b", "other")):
        make_tiny_student(folder / slug, seed=seed)
    return folder


@pytest.fixture(scope="module")
def on_disk() -> Iterator[dg.DagsterInstance]:
    """The schedule opens the instance again. Making one takes longer than most tests here."""
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def site(tmp_path: Path, made_once: Path, on_disk: dg.DagsterInstance) -> Site:
    on_disk.wipe()
    made = Site(tmp_path, on_disk, made_once)
    made.ticks()
    return made


def gone_everywhere(site: Site, slug: str) -> None:
    assert slug not in checkpoints.list_students(site.lake) and slug in retired.every(site.lake)
    assert slug not in {s.student for s in standings(site.settings, site.lake, checkpoints.list_students(site.lake))}
    assert slug not in site.partitions()
    assert slug not in site.ticks() and slug not in site.nightly()
    assert slug not in site.partitions(), "nobody has given it one again"
    assert site.retired_at()[slug]


def test_a_retired_student_is_nowhere_and_what_it_made_stays(site: Site) -> None:
    before = site.lake.manifest("students", "student=a")
    retirement.remove(site.settings, site.lake, site.instance, "a")
    gone_everywhere(site, "a")
    assert site.retired_at() == {"a": True, "b": False}
    assert "b" in site.nightly() and site.partitions() == ["b"]
    after = site.lake.manifest("students", "student=a")
    assert after and before and (after.content_hash, after.fingerprint) == (before.content_hash, before.fingerprint)
    with site.lake.connect() as con:
        assert con.execute("SELECT count(*) FROM student_scores WHERE student = 'a'").fetchall() == [(32,)]
    with pytest.raises(UserError, match="was retired on"):
        checkpoints.get(site.lake, "a")
    assert "srt students add" in site.skip
    again = retirement.remove(site.settings, site.lake, site.instance, "a")
    assert again.at == retired.every(site.lake)["a"].at, "it is retired since the first time"


def test_its_run_says_so_and_does_not_bring_it_back(site: Site) -> None:
    retirement.remove(site.settings, site.lake, site.instance, "a")
    site.instance.add_dynamic_partitions(STUDENTS, ["a"])  # somebody has typed its name in the UI
    done = materialize(build_defs(site.settings), site.instance, [names.STUDENT_CHECKPOINT], "a")
    assert done.exit_code == 2 and "was retired on" in done.errors[0] and "brings it back" in done.errors[0]
    site.settle()
    gone_everywhere(site, "a")


@pytest.mark.parametrize("slug", ["a", "b"])
def test_adding_it_brings_it_back_and_it_is_run_once(site: Site, slug: str) -> None:
    site.ticks()
    retirement.remove(site.settings, site.lake, site.instance, slug)
    site.ticks()
    site.add(slug)
    assert checkpoints.list_students(site.lake) == ["a", "b"] and site.partitions() == ["a", "b"]
    assert site.retired_at() == {"a": False, "b": False}
    assert site.settle() == [], "that it has had no partition for a while is no deletion"
    assert [site.tick(), site.tick(), site.tick()] == [[slug], [], []]
    assert STAGE.run(site.settings, site.lake, slug).cached


def test_files_that_were_only_touched_stay_out_and_others_come_in(site: Site, made_once: Path) -> None:
    retirement.remove(site.settings, site.lake, site.instance, "a")
    copy = shutil.copytree(site.folder / "a", site.folder / ".aside")
    shutil.rmtree(site.folder / "a")
    copy.rename(site.folder / "a")
    assert site.ticks() == {"a"}, "whether they are the same, only a run can say: it reads the weights"
    with pytest.raises(UserError, match="was retired on"):
        watch.register(site.settings, site.lake, "a")
    site.settle()
    gone_everywhere(site, "a")

    shutil.rmtree(site.folder / "a")
    shutil.copytree(made_once / "other", site.folder / "a")
    assert site.ticks() == {"a"}
    watch.register(site.settings, site.lake, "a")
    assert "a" in checkpoints.list_students(site.lake) and not site.retired_at()["a"]
    assert site.settle() == [] and site.partitions() == ["a", "b"]


LOOKERS: dict[str, Callable[[Site], object]] = {
    "retired_students": lambda site: retirement.retired_students(site.settings, 1)(
        dg.build_sensor_context(instance=site.instance)
    ),
    "new_student_checkpoints": lambda site: site.tick(),
    "nightly": lambda site: site.nightly(),
    "pipeline_status": lambda site: materialize(
        build_defs(site.settings), site.instance, [names.PIPELINE_STATUS], None
    ),
}


@pytest.mark.parametrize("looker", LOOKERS)
def test_a_partition_deleted_in_the_ui_counts_the_same_whoever_looks_first(site: Site, looker: str) -> None:
    site.instance.delete_dynamic_partition(STUDENTS, "a")
    LOOKERS[looker](site)
    assert checkpoints.list_students(site.lake) == ["b"] and [*retired.every(site.lake)] == ["a"]
    assert site.partitions() == ["b"] and site.retired_at() == {"a": True, "b": False}


def srt(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["srt", *words])
        main()
    return int(ended.value.code or 0)


def test_the_commands_notice_it_too(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SRT_HOME", str(site.settings.home))
    monkeypatch.setenv("SRT_AUTOMATION__WATCH", str(site.folder))
    monkeypatch.setenv("DAGSTER_HOME", site.instance.root_directory)
    assert srt("students", "add", str(site.sources["b"])) == 0
    site.instance.delete_dynamic_partition(STUDENTS, "b")
    capsys.readouterr()
    assert srt("status") == 0
    told = capsys.readouterr()
    assert "student b: its partition was deleted, so it is retired" in told.err
    assert "student_scores" in told.out and " b " not in told.out
    assert srt("run", "--student", "b") == 2
    assert "student b was retired on" in capsys.readouterr().err
    assert srt("students", "remove", "a") == 0
    assert "srt students add" in capsys.readouterr().out
    assert srt("students", "list") == 0
    assert capsys.readouterr().out.count("retired 2") == 2
    assert srt("run") == 2
    assert "no student is registered" in capsys.readouterr().err
    assert srt("students", "remove", "c") == 2
    assert "there is no student 'c'" in capsys.readouterr().err


def test_a_name_that_is_none_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRT_HOME", str(tmp_path / "home"))
    for words in ([], ["--purge"], ["--purge", "--yes"]):
        assert srt("students", "remove", "nobody", *words) == 2
    assert not (tmp_path / "home").exists()


def test_a_watched_student_that_was_never_run_is_retired_too(site: Site, made_once: Path) -> None:
    shutil.copytree(made_once / "other", site.folder / "c")
    site.instance.add_dynamic_partitions(STUDENTS, ["c"])
    site.settle()
    site.instance.delete_dynamic_partition(STUDENTS, "c")
    assert site.settle() == ["c"]
    gone_everywhere(site, "c")
    site.sources["c"] = site.folder / "c"
    site.add("c")
    assert site.tick() == ["c"] and not site.retired_at()["c"]


def test_an_instance_that_forgets_everything_retires_nobody(site: Site) -> None:
    site.settle()
    site.instance.event_log_storage.wipe()  # what `dagster run wipe` does: its partitions go with the events
    assert site.partitions() == [] and site.settle() == []
    with dg.DagsterInstance.ephemeral() as another:
        assert retirement.settle(site.settings, site.lake, another) == []
    assert checkpoints.list_students(site.lake) == ["a", "b"]


def test_a_student_that_cannot_be_read_holds_up_no_other(site: Site) -> None:
    site.settle()
    (site.lake.home / "students" / "a" / folders.RECORD).write_text("{")
    for slug in ("a", "b"):
        site.instance.delete_dynamic_partition(STUDENTS, slug)
    assert site.settle() == ["b"]
    assert site.settle() == []


def test_who_was_killed_in_the_middle_is_finished_by_the_next_to_look(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException): ...

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(retired, "show", killed)
        retirement.remove(site.settings, site.lake, site.instance, "a")
    assert site.partitions() == ["a", "b"] and not site.retired_at()["a"]
    site.settle()
    gone_everywhere(site, "a")

    retirement.remove(site.settings, site.lake, site.instance, "b")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(retired, "show", killed)
        site.add("b")
    assert checkpoints.list_students(site.lake) == ["b"] and site.retired_at()["b"]
    assert site.settle() == []
    assert not STAGE.run(site.settings, site.lake, "b").cached and not site.retired_at()["b"]


def test_who_adds_it_this_moment_keeps_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the partitions and the retiring, somebody registers it."""
    site.settle()
    site.instance.delete_dynamic_partition(STUDENTS, "a")
    before = retire

    def later(*arguments: object) -> object:
        site.add("a")
        return before(*arguments)

    monkeypatch.setattr(retirement, "retire", later)
    assert site.settle() == [] and checkpoints.list_students(site.lake) == ["a", "b"]


def test_a_home_without_a_retired_student_has_the_hashes_it_had(site: Site) -> None:
    manifest = site.lake.manifest("students", "student=a")
    assert manifest
    old = replace(TABLES["students"], columns=tuple(c for c in TABLES["students"].columns if c.name != "retired_at"))
    assert row_content_hash(old, site.lake.parts("students", "student=a")) == manifest.content_hash
    record = json.loads((site.lake.home / "students" / "a" / folders.RECORD).read_text())
    assert not {folders.RETIRED, folders.BACK_AT} & record.keys()
    assert isinstance(Lake(site.lake.home).manifests("students"), list)
