"""The lake: parts and manifests, content hashes, locks, readers beside a writer."""

import errno
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from srt_assets.core import lake as lake_module
from srt_assets.core import locks, sweep
from srt_assets.core.errors import Damaged, disk_full
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.sql.catalog import publish

WANT = Fingerprint.of(f=1)


def row(n: int, **more: object) -> dict:
    base = {"sample_id": f"s{n}", "dataset": "d", "instruction": f"i{n}", "input": "", "response": "r"}
    return {**base, "source_file": "f", "source_index": n, **more}


def commit(lake: Lake, rows: list[dict], want: Fingerprint = WANT, **more: object):
    part = lake.write_part("raw_records", rows)
    return lake.commit("raw_records", [part], fingerprint=want, code_version="1", **more)


def rows_of(lake: Lake, sql: str) -> list[tuple]:
    con = lake.connect()
    try:
        return con.execute(sql).fetchall()
    finally:
        con.close()


def test_an_empty_lake_has_every_table_typed_and_empty(lake: Lake) -> None:
    con = lake.connect()
    for name, table in lake_module.TABLES.items():
        relation = con.sql(f'SELECT * FROM "{name}"')
        assert relation.columns == [c.name for c in table.columns]
        assert [str(t) for t in relation.types] == [c.type for c in table.columns]
        assert relation.fetchall() == []
    con.close()


def test_a_part_is_content_only_after_its_commit(lake: Lake) -> None:
    part = lake.write_part("raw_records", [row(1)])
    assert rows_of(lake, "SELECT count(*) FROM raw_records") == [(0,)]
    lake.commit("raw_records", [part], fingerprint=Fingerprint.of(of="f"), code_version="1")
    assert rows_of(lake, "SELECT count(*) FROM raw_records") == [(1,)]


def test_content_hash_ignores_order_layout_and_volatile_columns(lake: Lake) -> None:
    one = commit(lake, [row(1), row(2)])
    parts = [lake.write_part("raw_records", [row(2, source_file="moved")]), lake.write_part("raw_records", [row(1)])]
    two = lake.commit("raw_records", parts, fingerprint=Fingerprint.of(of="f"), code_version="1")
    assert one.content_hash == two.content_hash
    assert commit(lake, [row(1), row(3)]).content_hash != one.content_hash
    assert commit(lake, [row(1), row(1)]).content_hash != commit(lake, [row(1)]).content_hash


def test_whole_means_complete_and_files_there(lake: Lake) -> None:
    manifest = commit(lake, [row(1)], want=Fingerprint.of(a=1))
    assert lake.whole("raw_records") == manifest
    assert manifest.inputs == {"a": 1} and manifest.fingerprint == Fingerprint.of(a=1).digest
    (lake.directory("raw_records") / manifest.parts[0]).unlink()
    with pytest.raises(Damaged, match=manifest.parts[0]):
        lake.whole("raw_records")
    commit(lake, [row(1)], want=Fingerprint.of(a=1), complete=False)
    assert lake.whole("raw_records") is None


def test_superseded_parts_stay_for_the_grace_time(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    old = commit(lake, [row(1)]).parts[0]
    path = lake.directory("raw_records") / old
    commit(lake, [row(2)])
    assert path.exists()
    monkeypatch.setattr(sweep, "GRACE", timedelta(seconds=-1))
    commit(lake, [row(3)])
    assert not path.exists()


def test_older_parts_without_a_column_read_as_null(lake: Lake) -> None:
    directory = lake.directory("raw_records")
    directory.mkdir(parents=True)
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"sample_id": ["a"], "unknown": [1]}), directory / "part-old.parquet")
    lake.commit("raw_records", ["part-old.parquet"], fingerprint=Fingerprint.of(of="f"), code_version="0")
    assert rows_of(lake, "SELECT sample_id, response FROM raw_records") == [("a", None)]


def test_a_failure_is_remembered_until_the_next_commit(lake: Lake) -> None:
    lake.record_failure("raw_records", None, Fingerprint.of(of="f"), "the disk is full")
    found = lake.failure("raw_records")
    assert found is not None and found.message == "the disk is full"
    commit(lake, [row(1)])
    assert lake.failure("raw_records") is None


def _hold(home: Path, held, go_on) -> None:
    with Lake(home).lock("raw_records"):
        held.set()
        go_on.wait()


def test_one_writer_per_table_and_a_killed_one_frees_it(home: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, go_on = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(home, held, go_on), daemon=True)
    other.start()
    assert held.wait(120)
    with Lake(home).lock("raw_rejects"):
        pass  # another table is free
    other.kill()
    with Lake(home).lock("raw_records"):
        pass  # who has it lets go by its death only
    other.join()


def test_whoever_waits_for_another_is_told(home: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(locks, "SILENT_S", 0.0)
    context = multiprocessing.get_context("spawn")
    held, go_on = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(home, held, go_on), daemon=True)
    other.start()
    assert held.wait(120)

    class LetGo(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            go_on.set()

    handler = LetGo(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        with Lake(home).lock("raw_records"):
            pass
    finally:
        logging.getLogger().removeHandler(handler)
    other.join()
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert told == ["waiting for another process that is writing raw_records"]


def _write_many(home: Path, stop) -> None:
    lake = Lake(home)
    n = 0
    while not stop.is_set():
        n += 1
        commit(lake, [row(n), row(n + 1)])


def test_readers_beside_a_writer_see_whole_contents_only(home: Path) -> None:
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    commit(Lake(home), [row(0), row(1)])
    writer = context.Process(target=_write_many, args=(home, stop))
    writer.start()
    seen = set()
    deadline = time.monotonic() + 120
    while len(seen) < 4 and time.monotonic() < deadline:
        found = rows_of(Lake(home), "SELECT count(*), max(source_index) - min(source_index) FROM raw_records")
        assert found == [(2, 1)]
        seen.add(rows_of(Lake(home), "SELECT max(source_index) FROM raw_records")[0])
    stop.set()
    writer.join()
    assert len(seen) == 4


SPILL = """
import sys
from pathlib import Path
from srt_assets.core.lake import Lake
cons = [Lake(Path(sys.argv[1])).connect("40MB") for _ in range(2)]
for i, con in enumerate(cons):
    con.execute("SET threads = 1")
    con.execute(f"CREATE TABLE mine AS SELECT range AS k, md5(range::VARCHAR || '{i}') AS v FROM range(1500000)")
assert list(Path(sys.argv[1], "tmp").iterdir()), "nothing was spilled"
for i, con in enumerate(cons):
    assert con.execute(f"SELECT count(*) FROM mine WHERE v = md5(k::VARCHAR || '{i}')").fetchall() == [(1500000,)]
    con.close()
assert not list(Path(sys.argv[1], "tmp").iterdir())
"""


def test_two_that_spill_at_once_do_not_meet(home: Path) -> None:
    home.mkdir()
    # A process of its own, for in one folder they crash.
    subprocess.run([sys.executable, "-c", SPILL, str(home)], check=True, timeout=120)


def test_what_killed_processes_left_is_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    machine = socket.gethostname()
    left, used = (home / "tmp" / f"{machine}@{pid}@a" for pid in (gone.pid, os.getpid()))
    far, lately = (home / "tmp" / f"other-machine@{os.getpid()}@{mark}" for mark in "ab")
    for folder in (left, used, far, lately):
        folder.mkdir(parents=True)
        (folder / "duckdb_temp_storage_DEFAULT-0.tmp").write_bytes(b"x")
    os.utime(far, times=(0, 0))
    monkeypatch.setattr("srt_assets.core.untouched.AGAIN_S", 0.0)
    lake = Lake(home)
    commit(lake, [row(1)])
    half, catalog = lake.directory("raw_records") / ".part-1.parquet.writing", home / ".srt.duckdb.1"
    for file in (half, catalog):
        file.write_bytes(b"x")
    commit(lake, [row(2)])
    publish(lake)
    assert half.exists(), "it may still be written"
    assert not catalog.exists()
    monkeypatch.setattr(sweep, "ORPHAN_AGE", timedelta(0))
    commit(lake, [row(3)])
    lake.connect().close()
    assert not half.exists()
    assert not left.exists() and used.exists()
    assert not far.exists() and lately.exists()


def test_a_full_disk_is_told_from_other_errors_in_python_and_in_duckdb() -> None:
    full = disk_full(OSError(errno.ENOSPC, "No space left on device", "part-1.parquet"))
    assert full and "part-1.parquet" in full.message and full.exit_code == 1
    assert disk_full(duckdb.IOException('IO Error: Could not write file "x": No space left on device'))
    assert disk_full(OSError(errno.EACCES, "Permission denied")) is None
    assert disk_full(duckdb.IOException("IO Error: Cannot open file")) is None
