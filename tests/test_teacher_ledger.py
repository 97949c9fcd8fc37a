"""The ledger: durable before it is looked at, torn tails dropped, never built upon, sealed once."""

import asyncio
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srt_assets.core.errors import UserError
from srt_assets.core.hashing import Fingerprint, digest
from srt_assets.core.lake import Lake
from srt_assets.core.teacher import instructions, ledger, responses, sealing
from srt_assets.core.teacher.call import Prompter, Source, call_key
from srt_assets.core.teacher.lookup import Lookup
from srt_assets.settings import Teacher
from tests.fake_openai import FakeOpenAI, Plan
from tests.teacher_home import candidates, home, table

ROOT = Path(__file__).parent.parent


def row(key: str, **facts):
    base = {"call_key": key, "status": "ok", "reply": f"reply {key} é\n", "finish_reason": "stop", "max_tokens": 10}
    return base | {"created_at": datetime(2026, 1, 1), "attempt": 1, "api_base": ""} | facts


def write(lake: Lake, *rows: dict) -> Path:
    async def append(book):
        await asyncio.gather(*(book.append(r) for r in rows))

    with ledger.Ledger(lake) as book:
        asyncio.run(append(book))
    return lake.directory(ledger.TABLE) / book.name


def test_truncation_at_every_byte_of_the_last_record(tmp_path):
    lake = Lake(tmp_path)
    path = write(lake, row("a"), row("b"), row("c"))
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in range(1, last + 1):
        path.write_bytes(whole[:-cut])
        assert [r["call_key"] for r in ledger.read_segment(path)] == ["a", "b"]
    for place in range(len(whole) - last, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert [r["call_key"] for r in ledger.read_segment(path)] == ["a", "b"]
    path.write_bytes(whole[:-1])
    assert sealing.seal(lake) == 2 and not path.exists()
    assert write(lake, row("c")).name != path.name
    with Lookup(lake) as lookup:
        assert sorted(lookup.known(["a", "b", "c", "d"])) == ["a", "b", "c"]


def test_a_crash_between_commit_and_removal_counts_no_row_twice(tmp_path, monkeypatch):
    lake = Lake(tmp_path)
    path = write(lake, row("a"), row("b"))
    content = path.read_bytes()
    sealing.seal(lake)
    path.write_bytes(content)
    with Lookup(lake) as lookup:
        assert len(lookup.known(["a", "b"])) == 2
    sealing.seal(lake)
    assert table(lake, "SELECT count(*) FROM teacher_calls") == [(2,)] and not path.exists()


def test_many_small_parts_are_compacted(tmp_path):
    lake = Lake(tmp_path)
    for i in range(30):
        write(lake, row(f"k{i}"))
        sealing.seal(lake)
    assert len(lake.manifest(ledger.TABLE).parts) < 26
    assert table(lake, "SELECT count(DISTINCT call_key) FROM teacher_calls") == [(30,)]


def test_compaction_under_a_folder_that_looks_like_a_column_keeps_the_column(tmp_path):
    """26 seals of one row: the folder `model=mine` became the model of every call that was paid."""
    lake = Lake(tmp_path / "model=mine")
    for i in range(26):
        write(lake, row(f"k{i}", model="openai/paid"))
        sealing.seal(lake)
    assert len(lake.manifest(ledger.TABLE).parts) < 24
    assert table(lake, "SELECT model, count(*) FROM teacher_calls GROUP BY 1") == [("openai/paid", 26)]


def test_compaction_leaves_parts_of_a_newer_program_alone(tmp_path):
    lake = Lake(tmp_path)
    write(lake, row("newer"))
    sealing.seal(lake)
    (newer,) = lake.manifest(ledger.TABLE).parts
    path = lake.directory(ledger.TABLE) / newer
    rows = pq.read_table(path)
    pq.write_table(rows.append_column("reasoning", pa.array(["dear"])), path.with_name("part-newer.parquet"))
    lake.commit(ledger.TABLE, ["part-newer.parquet"], fingerprint=Fingerprint.of(n=1), code_version="2", complete=False)
    newer, path = "part-newer.parquet", path.with_name("part-newer.parquet")
    for i in range(26):
        write(lake, row(f"k{i}"))
        sealing.seal(lake)
    parts = lake.manifest(ledger.TABLE).parts
    assert newer in parts and len(parts) < 24 and pq.read_table(path)["reasoning"].to_pylist() == ["dear"]
    assert table(lake, "SELECT count(*) FROM teacher_calls") == [(27,)]


def test_a_home_whose_name_is_a_pattern_reads_its_own_parts_only(tmp_path):
    """DuckDB takes every path for a pattern, and a copy of the home beside it has parts of the same names."""
    lake = Lake(tmp_path / "[exp] a?b*")
    write(lake, row("mine"))
    sealing.seal(lake)
    shutil.copytree(lake.home, tmp_path / "e a1b2")
    (copied,) = (tmp_path / "e a1b2").rglob("part-*.parquet")
    pq.write_table(pq.read_table(copied).set_column(0, "call_key", pa.array(["theirs"])), copied)
    assert table(lake, "SELECT call_key FROM teacher_calls") == [("mine",)]
    for i in range(26):
        write(lake, row(f"k{i}"))
        sealing.seal(lake)
    assert table(lake, "SELECT count(*), count(DISTINCT call_key) FROM teacher_calls") == [(27, 27)]


def test_one_function_reads_parts():
    """Whoever reads a part otherwise has to think of patterns, folders that look like columns, and types anew."""
    package = ROOT / "srt_assets"
    readers = {str(path.relative_to(package)) for path in package.rglob("*.py") if "read_parquet" in path.read_text()}
    # A training reads the file that it has written for itself.
    assert readers == {"core/tables.py", "core/training/rows.py"}


def lost(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if "record(s)" in r.getMessage()]


def test_half_a_line_of_a_living_writer_is_not_there_yet(tmp_path, caplog):
    lake = Lake(tmp_path)
    with ledger.Ledger(lake) as book:
        asyncio.run(book.append(row("a")))
        path = lake.directory(ledger.TABLE) / book.name
        half = ledger.encode(row("b"))[:40]
        with path.open("ab") as file:
            file.write(half)
        for _ in range(2):
            with Lookup(lake) as lookup:
                assert list(lookup.known(["a", "b"])) == ["a"]
        assert sealing.seal(lake) == 0 and path.exists()
    assert not lost(caplog)
    # Its writer is gone: the half line is lost, and that is said once.
    with Lookup(lake) as lookup:
        assert list(lookup.known(["a", "b"])) == ["a"]
    assert sealing.seal(lake) == 1 and sealing.seal(lake) == 0
    assert len(lost(caplog)) == 1 and path.name in lost(caplog)[0] and "1 record(s)" in lost(caplog)[0]


def test_damage_in_the_middle_of_a_segment_is_told_when_it_is_sealed(tmp_path, caplog):
    lake = Lake(tmp_path)
    path = write(lake, row("a"), row("b"), row("c"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:20] + b"?" + lines[1][21:] + lines[2])
    assert sealing.seal(lake) == 2
    assert len(lost(caplog)) == 1
    assert table(lake, "SELECT call_key FROM teacher_calls ORDER BY 1") == [("a",), ("c",)]


def test_a_cut_reply_serves_only_as_many_tokens_as_it_was_allowed(tmp_path):
    lake = Lake(tmp_path)
    write(lake, row("a", finish_reason="length"), row("b"), row("a", finish_reason="length", max_tokens=50))
    with Lookup(lake) as lookup:
        found = lookup.known(["a", "b"])
    a, b = found["a"].reply, found["b"].reply
    assert a.serves(50) and not a.serves(51) and b.serves(9999)


def test_a_full_disk_ends_the_call_not_the_ledger(tmp_path, monkeypatch):
    lake = Lake(tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    async def go(book):
        await book.append(row("a"))
        with monkeypatch.context() as patch:
            patch.setattr(ledger.os, "fsync", full)
            with pytest.raises(OSError, match="No space"):
                await book.append(row("b"))
        with pytest.raises(OSError, match="No space"):
            await book.append(row("c"))

    with ledger.Ledger(lake) as book:
        asyncio.run(go(book))
    assert "a" in [r["call_key"] for path in ledger.segments(lake) for r in ledger.read_segment(path)]


def test_a_reply_after_the_end_does_not_open_the_segment_anew(tmp_path):
    lake = Lake(tmp_path)

    async def go():
        book = ledger.Ledger(lake)
        await book.append(row("a"))
        book.close()  # as after a second Ctrl-C, which does not wait for the calls in flight
        with pytest.raises(RuntimeError, match="closed"):
            await asyncio.wait_for(book.append(row("late")), 3)

    asyncio.run(go())
    assert [r["call_key"] for path in ledger.segments(lake) for r in ledger.read_segment(path)] == ["a"]


def test_a_segment_that_cannot_be_made_is_an_error_not_a_hang(tmp_path):
    lake = Lake(tmp_path)
    lake.root.mkdir()
    lake.directory(ledger.TABLE).write_text("in the way")

    async def go():
        with ledger.Ledger(lake) as book:
            for key in "ab":
                with pytest.raises(FileExistsError):
                    await asyncio.wait_for(book.append(row(key)), 3)

    asyncio.run(go())


def test_half_a_character_in_an_error_does_not_poison_the_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k-test")
    cut = {"message": "cannot take 'caf\ud83d", "type": "t", "code": None}
    with FakeOpenAI(lambda body, nth: Plan("400", error=cut)) as fake:
        settings, lake = home(tmp_path, 1, api_base=fake.base)
        with pytest.raises(UserError, match="refuses every call"):
            instructions.STAGE.run(settings, lake)
    ((error,),) = table(lake, "SELECT error FROM teacher_calls")
    assert "caf?" in error
    path = write(lake, row("a", finish_reason="\ud83d"))
    assert sealing.seal(lake) == 1 and not path.exists()


TEXT = st.text(max_size=8)
REQUEST = st.fixed_dictionaries(
    {
        "messages": st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), min_size=1, max_size=3),
        "model": TEXT,
        "sampling": st.dictionaries(TEXT, st.floats(0, 2), max_size=2),
        "shape": st.none() | TEXT | st.dictionaries(TEXT, TEXT, max_size=3),
    }
)


@settings(max_examples=200, deadline=None)
@given(REQUEST, REQUEST)
def test_the_key_is_equal_exactly_when_the_request_is(one, other):
    assert call_key(**one) == call_key(**one)
    assert (call_key(**one) == call_key(**other)) == (digest(**one) == digest(**other)) == (one == other)


def test_key_order_in_a_schema_does_not_count():
    base = {"messages": [{"role": "user", "content": "x"}], "model": "m", "sampling": {"temperature": 0.0}}
    one = call_key(**base, shape={"a": 1, "b": {"c": 2, "d": 3}})
    assert one == call_key(**base, shape={"b": {"d": 3, "c": 2}, "a": 1})


CHANGES = {"model": "openai/other", "temperature": 0.5, "reply_format": "json_schema", "reasoning_effort": "low",
           "parameters": {"top_p": 0.5}}  # fmt: skip
NO_CHANGES = {"max_tokens": 7, "api_base": "http://x/v1", "concurrency": 3, "rpm": 5, "tpm": 6, "budget_usd": 2.0,
              "timeout_s": 9.0, "max_attempts": 2, "context_tokens": 99, "usd_per_million_input": 1.0,
              "usd_per_million_output": 1.0, "good_finish_reasons": ("abort",), "patience_s": 9.0,
              "max_tokens_name": "max_completion_tokens"}  # fmt: skip


def test_every_setting_either_changes_the_key_or_does_not():
    source = Source("id", "reflect_instruction", "i", "x", "r")
    plain = Teacher(model="openai/m", reply_format="markers")
    key, facts = Prompter(plain).call(source).key, Prompter(plain).call(source).facts
    for name, value in CHANGES.items():
        changed = Prompter(plain.model_copy(update={name: value})).call(source)
        # The facts too: else the old reply would be taken for one that only another program asked otherwise.
        assert changed.key != key and changed.facts != facts, name
    for name, value in NO_CHANGES.items():
        assert Prompter(plain.model_copy(update={name: value})).call(source).key == key, name
    # A new setting has to be put on one of the two lists.
    assert set(Teacher.model_fields) - {"batch"} == set(CHANGES) | set(NO_CHANGES)
    texts = [("j", "x", "r"), ("i", "y", "r"), ("i", "x", "s"), ("i", "", "r")]
    assert len({key, *(Prompter(plain).call(Source("id", "reflect_instruction", *t)).key for t in texts)}) == 5
    assert Prompter(plain).call(Source("other", "reflect_instruction", "i", "x", "r")).key == key


@pytest.mark.slow
def test_kill_at_twenty_random_points_pays_nothing_twice_but_the_calls_in_flight(tmp_path, monkeypatch):
    """A run is killed -9 twenty times, then finished; its tables equal those of an undisturbed one."""
    monkeypatch.setenv("OPENAI_API_KEY", "test-key-of-nobody")
    with FakeOpenAI(lambda body, nth: Plan(latency_s=0.03)) as fake:
        settings, lake = home(tmp_path / "quiet", 30, api_base=fake.base)
        instructions.STAGE.run(settings, lake), responses.STAGE.run(settings, lake)
        wanted, needed = candidates(lake), fake.calls
        assert needed == 90
        fake.paid.clear()
        # The killer forks after the imports, which take many times longer than the pieces between two kills.
        command = [sys.executable, "-c", KILLER, str(tmp_path / "killed"), fake.base]
        driver = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert driver.returncode == 0, driver.stderr[-3000:]
        kills, on_disk = map(int, driver.stdout.split()[-2:])
        settings, lake = home(tmp_path / "killed", 30, api_base=fake.base)
        instructions.STAGE.run(settings, lake), responses.STAGE.run(settings, lake)
    assert kills == 20 and on_disk > 20, "the kills must hit runs that are at work"
    assert candidates(lake) == wanted
    twice, in_flight = sum(fake.paid.values()) - needed, kills * 4
    assert len(fake.paid) == needed and 0 <= twice <= in_flight
    assert table(lake, "SELECT count(DISTINCT call_key) FROM teacher_calls WHERE status = 'ok'") == [(needed,)]
    print(
        f"kills {kills}, replies on disk at the kills {on_disk}, calls needed {needed}, "
        f"paid {sum(fake.paid.values())}, twice {twice} (in flight at the kills: at most {in_flight})"
    )


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from tests.teacher_home import home
from srt_assets.core.teacher import instructions, responses
from srt_assets.core.teacher.client import litellm
litellm()
settings, lake = home(Path(sys.argv[1]), 30, api_base=sys.argv[2], concurrency=4)
dice, kills, on_disk = random.Random(7), 0, 0
def lines(child):
    return sum(path.read_bytes().count(b"\\n") for path in lake.directory("teacher_calls").glob(f"segment-*-{child}-*"))
for _ in range(20):
    child = os.fork()
    if child == 0:
        instructions.STAGE.run(settings, lake)
        responses.STAGE.run(settings, lake)
        os._exit(0)
    # Some die while they start, the others after a few replies of theirs are on disk and some moments later.
    few, deadline = dice.randint(0, 4), time.monotonic() + 60
    while few and lines(child) < few and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(dice.uniform(0.0, 0.05))
    on_disk += lines(child)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    kills += os.WIFSIGNALED(status)
print(kills, on_disk)
"""


@pytest.mark.slow
def test_several_processes_write_seal_and_read_at_once(tmp_path):
    """Four processes append, each seals every now and then; two runs of one asset at once ask every call once."""
    with FakeOpenAI(lambda body, nth: Plan(latency_s=0.02)) as fake:
        settings, lake = home(tmp_path, 12, api_base=fake.base)
        command = [sys.executable, "-c", WRITERS, settings.model_dump_json()]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        assert fake.calls == 12 and all(paid == 1 for paid in fake.paid.values())
    sealing.seal(lake)
    assert not ledger.segments(lake)
    counted = "count(*), count(DISTINCT call_key), count(DISTINCT segment)"
    assert table(lake, f"SELECT {counted} FROM teacher_calls WHERE purpose IS NULL") == [(160, 160, 16)]
    assert table(lake, "SELECT count(*) FROM teacher_calls WHERE purpose IS NOT NULL") == [(12,)]


WRITERS = """
import asyncio, os, sys
from srt_assets.core.lake import Lake
from srt_assets.core.teacher import instructions, ledger, sealing
from srt_assets.core.teacher.client import litellm
from srt_assets.settings import Settings
litellm()
settings = Settings.model_validate_json(sys.argv[1])
lake = Lake(settings.home)

def write(who):
    async def some(book, turn):
        rows = [{"call_key": f"{who}-{turn}-{i}", "status": "ok", "created_at": None} for i in range(10)]
        await asyncio.gather(*(book.append(row) for row in rows))
    for turn in range(4):
        with ledger.Ledger(lake) as book:
            asyncio.run(some(book, turn))
        sealing.seal(lake)

children = []
for who in range(6):
    child = os.fork()
    if child == 0:
        write(who) if who < 4 else instructions.STAGE.run(settings, lake)
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
"""
