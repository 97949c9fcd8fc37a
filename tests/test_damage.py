"""Damage of a home's files: noticed by every reader, named with its remedy, mended without losing what is whole."""

import errno
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from old_homes import open_home
from selection_lake import small_lake
from test_teacher_ledger import row as reply
from test_teacher_ledger import write as write_replies

import srt_assets
from srt_assets.cli import main
from srt_assets.core import damage, integrity, looks, manifest, parquet, sweep
from srt_assets.core.errors import Damaged, StageError, UserError
from srt_assets.core.lake import FAILURE, Lake
from srt_assets.core.repair import repair
from srt_assets.core.selection import decide
from srt_assets.core.sql import catalog
from srt_assets.core.status import standings
from srt_assets.core.students import checkpoints
from srt_assets.core.teacher import ledger, sealing
from srt_assets.core.teacher.lookup import Lookup
from srt_assets.settings import Project, Settings

TABLES = ("raw_records", "candidates", "student_scores", "decisions", "selected_set", "teacher_calls")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Every kind of table: plain and partitioned, finished and not."""
    lake = small_lake(tmp_path / "home")
    decide.STAGE.run(settings_of(lake), lake, student="tiny")
    write_replies(lake, *(reply(f"k{n}") for n in range(30)))
    sealing.seal(lake)
    return lake


def settings_of(lake: Lake) -> Settings:
    return Settings(project=Project(home=lake.home))


def srt(lake: Lake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str):
    monkeypatch.setenv("SRT_HOME", str(lake.home))
    monkeypatch.setenv("COLUMNS", "2000")
    monkeypatch.setattr(sys, "argv", ["srt", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out + err


def part_of(lake: Lake, table: str) -> Path:
    return sorted(lake.directory(table).rglob("part-*.parquet"))[0]


def flip(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def rows(lake: Lake, table: str) -> list[tuple]:
    with lake.connect() as con:
        return con.execute(f"FROM {table} ORDER BY ALL").fetchall()


def test_no_flipped_bit_of_a_part_or_manifest_goes_unnoticed(lake: Lake) -> None:
    dice = random.Random(0)
    for table in TABLES:
        before = rows(lake, table)
        part = part_of(lake, table)
        for path in (part, part.parent / manifest.NAME):
            good = path.read_bytes()
            for _ in range(8):
                flip(path, dice.randrange(len(good)), dice.randrange(8))
                with pytest.raises((duckdb.Error, UserError)) as told:
                    rows(lake, table)
                told_all = str(told.value)
                assert path.name in told_all and ("srt repair" in told_all or "install srt-assets" in told_all)
                path.write_bytes(good)
        assert rows(lake, table) == before


def test_what_looks_untouched_is_read_in_full_when_asked(lake: Lake) -> None:
    """Decay of the disk leaves times alone: a cheap look misses it, the deep one does not."""
    part = part_of(lake, "selected_set")
    found = lake.manifest("selected_set", "student=tiny")
    assert found is not None
    memory = integrity.memory_of(lake.home, found)
    flip(part, part.stat().st_size // 2, 3)
    looks = part.stat()
    integrity._seen[part] = [looks.st_size, looks.st_mtime_ns, looks.st_ctime_ns, looks.st_ino, found.sums[part.name]]
    lake.parts("selected_set")
    with pytest.raises(Damaged, match=part.name):
        lake.verify("selected_set", "student=tiny")
    assert [error.file for error in damage.find(lake) if isinstance(error, Damaged)] == [part]
    assert not memory.exists() or part.name in memory.read_text()


def test_answers_are_remembered_and_a_file_just_touched_is_read_again(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    true_sum = integrity.file_sha256
    monkeypatch.setattr(integrity, "file_sha256", lambda path: read.append(path) or true_sum(path))
    part = part_of(lake, "raw_records")

    def look() -> int:
        integrity._seen.clear()
        before = len(read)
        lake.parts("raw_records")
        return len(read) - before

    assert (look(), look()) == (1, 1), "it may have changed within this tick of the clock"
    monkeypatch.setattr(looks, "SETTLED_S", -1.0)
    assert (look(), look()) == (1, 0)
    os.utime(part)
    assert (look(), look()) == (1, 0)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EMFILE, "Too many open files"),
        MemoryError(),
        pa.ArrowMemoryError("malloc of size 8 failed"),
        duckdb.OutOfMemoryException("Out of Memory Error: could not allocate block"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_says_nothing_about_a_file_does_not_make_it_damaged(lake: Lake, error: Exception, monkeypatch) -> None:
    """`srt repair` would set a good part aside."""

    def fails(*_: object, **__: object) -> None:
        raise error

    integrity._seen.clear()
    monkeypatch.setattr(integrity, "file_sha256", fails)
    monkeypatch.setattr(pq, "ParquetFile", fails)
    part = part_of(lake, "teacher_calls")
    for ask in (
        lambda: lake.verify("raw_records"),
        lambda: list(repair(lake)),
        lambda: parquet.check_pages(part),
        lambda: parquet.whole_row_groups(part, damage.TABLES["teacher_calls"]),
    ):
        with pytest.raises(type(error)) as told:
            ask()
        assert told.value is error
    assert not (lake.home / "damaged").exists()


def test_a_sector_that_cannot_be_read_is_damage(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    integrity._seen.clear()
    monkeypatch.setattr(integrity, "file_sha256", fails)
    with pytest.raises(Damaged, match="Input/output error"):
        lake.verify("raw_records")


def test_replies_that_were_never_counted_are_not_said_to_be_lost_or_found(lake: Lake) -> None:
    extra = lake.write_part("teacher_calls", [reply(f"u{n}", segment="gone") for n in range(1500)])
    path = lake.directory("teacher_calls") / extra
    flip(path, pq.read_metadata(path).row_group(0).column(0).data_page_offset + 40, 2)
    (done,) = repair(lake)
    assert done.lost == "replies, how many is not known" and "500 replies of it are whole" in done.next
    assert len(rows(lake, "teacher_calls")) == 530


BREAK: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
    "garbage": lambda path: path.write_bytes(os.urandom(500)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
OF_A_MANIFEST: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_text(""),
    "garbage": lambda path: path.write_bytes(b"\xff\xfe{"),
    "a list": lambda path: path.write_text("[]"),
    "a number": lambda path: path.write_text("7"),
    "edited": lambda path: path.write_text(path.read_text().replace('"complete": true', '"complete": false')),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def check_all_readers_say(lake: Lake, table: str, file: Path, monkeypatch, capsys) -> None:
    """One message with file and remedy from sql, status, a run, a notebook and the published file."""
    code, told = srt(lake, monkeypatch, capsys, "sql", f"SELECT count(*) FROM {table}")
    assert code == 2 and str(file) in told and "srt repair" in told, told
    code, told = srt(lake, monkeypatch, capsys, "sql", "SELECT count(*) FROM raw_rejects")
    assert code == 0, "other tables can be asked"
    with pytest.raises(UserError, match="srt repair"):
        srt_assets.read(table, home=lake.home)
    with duckdb.connect() as con, pytest.raises(duckdb.Error, match="srt repair"):
        con.execute(f"ATTACH '{catalog.path_of(lake)}' AS srt (READ_ONLY)")
        con.execute(f"SELECT count(*) FROM srt.{table}")
    found = {s.asset: s for s in standings(settings_of(lake), lake, ["tiny"])}
    if table == "selected_set":
        assert found["selected_set"].state == "damaged"
        assert str(file) in found["selected_set"].why and "srt repair" in found["selected_set"].why
        with pytest.raises(Damaged, match="srt repair"):
            decide.STAGE.run(settings_of(lake), lake, student="tiny")
    assert not [s for s in found.values() if s.state == "fresh"]


@pytest.mark.parametrize("how", BREAK)
def test_a_broken_part_is_named_everywhere_and_mended(lake: Lake, how: str, monkeypatch, capsys) -> None:
    before, part = rows(lake, "selected_set"), part_of(lake, "selected_set")
    BREAK[how](part)
    check_all_readers_say(lake, "selected_set", part, monkeypatch, capsys)
    code, told = srt(lake, monkeypatch, capsys, "doctor", "--verify")
    assert code == 2 and str(part) in told
    code, told = srt(lake, monkeypatch, capsys, "repair")
    assert code == 0 and str(part) in told and "srt run selected_set --student tiny" in told
    if how != "gone":
        assert len(list((lake.home / "damaged").rglob(part.name))) == 1, "set aside, not deleted"
    assert not list(damage.find(lake))
    decide.STAGE.run(settings_of(lake), lake, student="tiny")
    assert rows(lake, "selected_set") == before
    assert srt(lake, monkeypatch, capsys, "repair") == (0, "nothing is damaged\n")


@pytest.mark.parametrize("how", OF_A_MANIFEST)
def test_a_broken_manifest_is_named_everywhere_and_put_back(lake: Lake, how: str, monkeypatch, capsys) -> None:
    before = rows(lake, "selected_set")
    path = lake.directory("selected_set", "student=tiny") / manifest.NAME
    text = path.read_text()
    OF_A_MANIFEST[how](path)
    assert how != "edited" or path.read_text() != text
    check_all_readers_say(lake, "selected_set", path, monkeypatch, capsys)
    done = list(repair(lake))
    assert [item.lost for item in done] == ["nothing"] and done[0].place is not None
    assert rows(lake, "selected_set") == before and path.read_text() == text


def test_without_its_copy_a_manifest_is_made_again(lake: Lake) -> None:
    before = rows(lake, "selected_set")
    folder = lake.directory("selected_set", "student=tiny")
    (folder / manifest.NAME).write_text("{")
    (folder / manifest.COPY).write_text("{")
    (done,) = repair(lake)
    assert "srt run selected_set --student tiny makes it again" in done.next
    assert lake.manifest("selected_set", "student=tiny") is None
    decide.STAGE.run(settings_of(lake), lake, student="tiny")
    assert rows(lake, "selected_set") == before


def test_a_lost_manifest_comes_back_from_its_copy(lake: Lake) -> None:
    before = rows(lake, "student_scores")
    (lake.directory("student_scores", "student=tiny") / manifest.NAME).unlink()
    assert rows(lake, "student_scores") == []
    (done,) = repair(lake)
    assert done.lost == "nothing" and rows(lake, "student_scores") == before


def test_whole_parts_beside_a_broken_one_stay_in_use(lake: Lake) -> None:
    more = lake.write_part("student_scores", [{"student": "tiny", "sample_id": "new"}], "student=tiny")
    before = lake.manifest("student_scores", "student=tiny")
    assert before is not None
    from srt_assets.core.hashing import Fingerprint

    made_from = Fingerprint.of(n=1)
    names = [*before.parts, more]
    lake.commit("student_scores", names, fingerprint=made_from, code_version="1", partition="student=tiny")
    (lake.directory("student_scores", "student=tiny") / more).write_bytes(b"x")
    (done,) = repair(lake)
    assert done.lost.startswith("1 of 33 rows")
    after = lake.manifest("student_scores", "student=tiny")
    assert after is not None and after.parts == before.parts and not after.complete
    assert len(rows(lake, "student_scores")) == 32


def test_nothing_is_mended_while_a_run_writes(lake: Lake) -> None:
    part_of(lake, "policy_decisions").write_bytes(b"x")
    with lake.lock("selected_set", "student=tiny"), pytest.raises(StageError, match="srt repair again"):
        list(repair(lake))
    assert part_of(lake, "policy_decisions").read_bytes() == b"x"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", None])
def test_a_broken_failure_note_is_named_and_set_aside(lake: Lake, text: str | None, monkeypatch, capsys) -> None:
    note = lake.directory("selected_set", "student=tiny") / "_failure.json"
    note.mkdir() if text is None else note.write_text(text)
    part_of(lake, "selected_set").unlink()
    shutil.copy(lake.directory("selected_set", "student=tiny") / manifest.COPY, lake.home / "spare")
    with pytest.raises(Damaged, match=FAILURE):
        lake.failure("selected_set", "student=tiny")
    list(repair(lake))
    assert lake.failure("selected_set", "student=tiny") is None


@pytest.mark.parametrize("how", ["a folder", "garbage"])
def test_a_broken_published_file_is_made_again(lake: Lake, how: str, monkeypatch, capsys) -> None:
    path = catalog.publish(lake)
    BREAK[how](path)
    if how == "a folder":
        code, told = srt(lake, monkeypatch, capsys, "sql", "SELECT 1")
        assert code == 2 and str(path) in told and "srt repair" in told
        list(repair(lake))
    assert srt(lake, monkeypatch, capsys, "sql", "SELECT 1 AS one")[0] == 0


# -- students and checkpoints


def demo(tmp_path: Path) -> tuple[Settings, Lake]:
    home = open_home("demo", tmp_path)
    return home.settings, home.lake


@pytest.mark.parametrize("key", ["source", "generation", None])
def test_a_student_file_without_a_key_is_damaged(tmp_path: Path, key: str | None, monkeypatch, capsys) -> None:
    settings, lake = demo(tmp_path)
    path = lake.home / "students" / "tiny" / "srt_student.json"
    if key:
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    else:
        path.unlink()
        path.mkdir()
    found = {s.asset: s for s in standings(settings, lake, ["tiny"])}
    assert found["student_checkpoint"].state == "damaged" and str(path) in found["student_checkpoint"].why
    (done,) = [item for item in repair(lake) if "tiny" in item.what]
    assert "srt students add SOURCE --name tiny" in done.next
    assert done.place is not None and done.place.is_dir()
    assert checkpoints.list_students(lake) == []


def test_changed_weights_of_a_checkpoint_made_here_are_no_new_student(tmp_path: Path) -> None:
    """A changed file of somebody else's folder is another checkpoint. In the home it can only be damage."""
    settings, lake = demo(tmp_path)
    (made,) = [path for path in (lake.home / "checkpoints" / "tiny").iterdir() if path.is_dir()]
    checkpoints.add(settings, lake, str(made), "tiny-2")
    checkpoints.get(lake, "tiny-2")
    weights = made / "model.safetensors"
    flip(weights, weights.stat().st_size - 5, 1)
    with pytest.raises(Damaged, match="tiny-2"):
        checkpoints.get(lake, "tiny-2")


def test_a_finished_training_whose_files_changed_is_found(tmp_path: Path) -> None:
    _, lake = demo(tmp_path)
    (made,) = [path for path in (lake.home / "checkpoints" / "tiny").iterdir() if path.is_dir()]
    record = made / "training_record.json"
    facts = json.loads(record.read_text())
    sums = {"model.safetensors": integrity.file_sha256(made / "model.safetensors")}
    record.write_text(json.dumps(facts | {"sums": sums}))
    assert not list(damage.of_checkpoints(lake))
    flip(made / "model.safetensors", 2000, 1)
    ((folder, error),) = damage.of_checkpoints(lake)
    assert folder == made and "model.safetensors" in error.message
    record.write_text("[]")
    ((folder, error),) = damage.of_checkpoints(lake)
    assert "training_record.json" in error.message


# -- what was paid for


def keys(lake: Lake) -> list[str]:
    return [key for (key,) in sorted(set((r[0],) for r in rows(lake, "teacher_calls")))]


def age(lake: Lake, days: float) -> None:
    past = time.time() - days * 86400
    for path in lake.directory("teacher_calls").glob("part-*.parquet"):
        os.utime(path, (past, past))


def test_the_ledger_without_its_manifest_is_found_again(lake: Lake) -> None:
    before = keys(lake)
    for name in (manifest.NAME, manifest.COPY):
        (lake.directory("teacher_calls") / name).unlink()
    age(lake, 5)
    assert keys(lake) == before, "also before the next run"
    write_replies(lake, reply("new"))
    sealing.seal(lake)
    assert keys(lake) == sorted([*before, "new"]) and len(rows(lake, "teacher_calls")) == 31
    write_replies(lake, reply("newer"))
    sealing.seal(lake)
    assert len(rows(lake, "teacher_calls")) == 32


def test_without_a_manifest_no_reply_is_asked_for_again(lake: Lake) -> None:
    (lake.directory("teacher_calls") / manifest.NAME).unlink()
    with Lookup(lake) as lookup:
        assert set(lookup.known([f"k{n}" for n in range(30)])) == {f"k{n}" for n in range(30)}
    assert lake.manifest("teacher_calls") is not None


def test_parts_that_were_compacted_are_not_counted_twice(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(26):
        write_replies(lake, reply(f"more{n}"))
        sealing.seal(lake)
    before = rows(lake, "teacher_calls")
    assert len(list(lake.directory("teacher_calls").glob("part-*.parquet"))) > 20, "superseded ones are there still"
    for name in (manifest.NAME, manifest.COPY):
        (lake.directory("teacher_calls") / name).unlink()
    sealing.seal(lake)
    assert rows(lake, "teacher_calls") == before
    monkeypatch.setattr(sweep, "GRACE", timedelta(seconds=-1))
    write_replies(lake, reply("last"))
    sealing.seal(lake)
    assert len(rows(lake, "teacher_calls")) == len(before) + 1


def test_a_seal_that_was_killed_before_its_commit_counts_no_reply_twice(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_replies(lake, reply("late"), reply("later"))
    with monkeypatch.context() as patch:
        patch.setattr(Lake, "commit", lambda *_, **__: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            sealing.seal(lake)
    assert len(list(lake.directory("teacher_calls").glob("part-*.parquet"))) == 2
    age(lake, 5)
    sealing.seal(lake)
    assert len(rows(lake, "teacher_calls")) == 32 and not ledger.segments(lake)


def test_whole_replies_of_a_damaged_part_are_kept(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "home")
    write_replies(lake, *(reply(f"k{n}", reply=os.urandom(200).hex()) for n in range(2500)))
    sealing.seal(lake)
    before = dict((r[0], r) for r in rows(lake, "teacher_calls"))
    (part,) = lake.directory("teacher_calls").glob("part-*.parquet")
    assert pq.read_metadata(part).num_row_groups == 3
    flip(part, part.stat().st_size // 2, 1)
    with pytest.raises(duckdb.Error, match="srt repair"):
        Lookup(lake)
    (done,) = repair(lake)
    assert "1,000 replies" in done.lost and "1,500 replies" in done.next and done.place and done.place.is_file()
    after = rows(lake, "teacher_calls")
    assert len(after) == 1500 and all(before[r[0]] == r for r in after)


def test_no_reply_is_kept_that_may_be_damaged(tmp_path: Path) -> None:
    """Flip a bit anywhere: what is salvaged is what was there, or nothing."""
    lake = Lake(tmp_path / "home")
    write_replies(lake, *(reply(f"k{n}") for n in range(1500)))
    sealing.seal(lake)
    before = set(rows(lake, "teacher_calls"))
    (part,) = lake.directory("teacher_calls").glob("part-*.parquet")
    good, table = part.read_bytes(), damage.TABLES["teacher_calls"]
    dice = random.Random(1)
    copy = tmp_path / "copy.parquet"
    for _ in range(40):
        copy.write_bytes(good)
        flip(copy, dice.randrange(len(good)), dice.randrange(8))
        for piece in parquet.whole_row_groups(copy, table):
            found = parquet.conform(piece, table.arrow_schema).to_pylist()
            assert {tuple(r.values()) for r in found} <= before


def test_a_damaged_line_of_a_segment_is_set_aside_not_lost(lake: Lake, caplog) -> None:
    path = write_replies(lake, reply("a"), reply("b"), reply("c"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"reply b", b"reply x") + lines[2])
    assert [error.file for error in damage.of_ledger(lake)] == [path]
    assert sealing.seal(lake) == 2
    (kept,) = (lake.home / "damaged").rglob("segment-*")
    assert b"reply x" in kept.read_bytes() and str(kept) in caplog.text


@pytest.mark.slow
def test_compaction_keeps_every_column_whatever_the_home_is_called(tmp_path: Path) -> None:
    for name in ("status=bad", "reply=x", "model=mine", "call_key=7", 'it\'s "quoted" status=bad'):
        lake = Lake(tmp_path / name / "home")
        for n in range(26):
            write_replies(lake, reply(f"k{n}", model="paid"))
            sealing.seal(lake)
        found = lake.manifest("teacher_calls")
        assert found is not None and len(found.parts) < 24
        with lake.connect() as con:
            got = con.execute("SELECT count(DISTINCT call_key), any_value(status), any_value(model) FROM teacher_calls")
            assert got.fetchall() == [(26, "ok", "paid")]
        with lake.connect() as con:
            assert con.execute("SELECT reply FROM teacher_calls WHERE call_key = 'k3'").fetchall() == [
                ("reply k3 é\n",)
            ]
        assert datetime(2026, 1, 1) == rows(lake, "teacher_calls")[0][-1]
