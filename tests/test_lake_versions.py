"""Homes of other versions: older ones are read as they are and upgraded by the first write, newer ones refused by name.

And parts that somebody still reads, which nobody may delete.
"""

import json
import multiprocessing
from datetime import timedelta
from pathlib import Path

import pytest

from srt_assets import __version__
from srt_assets.core import manifest as manifests
from srt_assets.core import sweep
from srt_assets.core.errors import UserError
from srt_assets.core.hashing import Fingerprint, digest
from srt_assets.core.lake import Lake

GONE = object()


def put(lake: Lake, n: int, table: str = "raw_records", **more: object) -> manifests.Manifest:
    part = lake.write_part(table, [{"dataset": "d", "source_index": n}])
    return lake.commit(table, [part], fingerprint=Fingerprint.of(n=n), code_version="1", **more)


def edit(lake: Lake, table: str = "raw_records", **facts: object) -> Path:
    """Change keys of a manifest on disk, or take them out."""
    path = lake.directory(table) / manifests.NAME
    changed = json.loads(path.read_text()) | facts
    left = {k: v for k, v in changed.items() if v is not GONE and k != "checksum"}
    path.write_text(json.dumps(left | {"checksum": digest(**left)}))
    return path


def make_old(lake: Lake, *tables: str) -> None:
    for table in tables:
        edit(lake, table, schema_version=1, program=GONE, sums=GONE)
    (lake.root / "_version.json").unlink()


def test_an_old_manifest_is_read_as_it_is(lake: Lake) -> None:
    new = put(lake, 1)
    make_old(lake, "raw_records")
    path = lake.directory("raw_records") / manifests.NAME
    text = path.read_text()
    read = lake.manifest("raw_records")
    assert read is not None and (read.program, read.schema_version) == ("0.1", manifests.VERSION)
    assert read.parts == new.parts and path.read_text() == text


def test_the_first_write_upgrades_all_says_so_once_and_keeps_the_old(
    lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    put(lake, 1), put(lake, 1, "raw_rejects")
    make_old(lake, "raw_records", "raw_rejects")
    old = {t: (lake.directory(t) / manifests.NAME).read_text() for t in ("raw_records", "raw_rejects")}
    for n in (2, 3):
        put(Lake(lake.home), n)
    assert caplog.text.count("made by an older srt-assets: 2 manifests") == 1
    for table, text in old.items():
        assert (lake.directory(table) / "_manifest.v1.json").read_text() == text
        assert manifests.version_of(lake.directory(table)) == manifests.VERSION
    rejects, records = lake.manifest("raw_rejects"), lake.manifest("raw_records")
    assert rejects is not None and rejects.rows == 1
    assert records is not None and records.program == __version__ and records.inputs == {"n": 3}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"schema_version": 9, "program": "7.1", "news": 1}, ["srt-assets 7.1", "version 9", __version__]),
        ({"news": 1, "program": "0.9"}, ["'news'", "srt-assets 0.9"]),
        ({"parts": GONE}, ["damaged", "parts"]),
        ({"schema_version": GONE}, ["damaged", "schema_version"]),
        ({"schema_version": 0}, ["damaged", "schema_version"]),
        ({"schema_version": "2"}, ["damaged", "schema_version"]),
    ],
)
def test_what_this_program_does_not_know_names_the_version_the_home_needs(lake: Lake, facts, words) -> None:
    put(lake, 1)
    path = edit(lake, **facts)
    with pytest.raises(UserError) as error:
        lake.manifest("raw_records")
    assert all(word in str(error.value) for word in [str(path), *words])


@pytest.mark.parametrize("text", ["", "[]", "3", "{"])
def test_a_manifest_that_is_none_is_named(lake: Lake, text: str) -> None:
    put(lake, 1)
    path = lake.directory("raw_records") / manifests.NAME
    path.write_text(text)
    with pytest.raises(UserError) as error:
        lake.manifest("raw_records")
    assert str(path) in str(error.value) and "damaged" in str(error.value)


def test_a_damaged_manifest_or_mark_keeps_no_other_table_from_being_written(lake: Lake) -> None:
    put(lake, 1), put(lake, 1, "raw_rejects")
    (lake.directory("raw_rejects") / manifests.NAME).write_text("{")
    (lake.root / "_version.json").write_text("{")
    assert put(lake, 2).inputs == {"n": 2}
    assert (lake.directory("raw_rejects") / manifests.NAME).read_text() == "{"


# -- readers


def _read_and_wait(home: Path, ready, go_on, result) -> None:
    with Lake(home).connect() as con:
        ready.set()
        go_on.wait(60)
        result.put(con.execute("SELECT source_index FROM raw_records").fetchall())


@pytest.mark.parametrize("killed", [False, True])
def test_a_long_reader_keeps_its_parts_as_long_as_it_lives(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    monkeypatch.setattr(sweep, "GRACE", timedelta(seconds=-1))
    part = lake.directory("raw_records") / put(lake, 1).parts[0]
    context = multiprocessing.get_context("spawn")
    ready, go_on, result = context.Event(), context.Event(), context.Queue()
    reader = context.Process(target=_read_and_wait, args=(lake.home, ready, go_on, result))
    reader.start()
    assert ready.wait(60)
    for n in (2, 3):
        put(lake, n)
    assert part.exists()
    if killed:
        reader.kill()
    else:
        go_on.set()
        assert result.get(timeout=60) == [(1,)]
    reader.join(60)
    put(lake, 4)
    assert not part.exists()
    assert not list((lake.home / "locks" / "reading").iterdir())


def test_reading_writes_nothing_where_there_is_nothing(lake: Lake) -> None:
    lake.connect().close()
    assert not lake.home.exists()
