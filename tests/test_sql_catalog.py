"""srt.duckdb: typed and complete from the start, readable anywhere, republished when it must be, safe to query."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from io import StringIO
from pathlib import Path

import duckdb
import pytest
from selection_lake import small_lake

import srt_assets
from srt_assets.commands import sql as sql_command
from srt_assets.core.errors import StageError, UserError
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.selection import decide
from srt_assets.core.sql import catalog, models, query
from srt_assets.core.tables import TABLES
from srt_assets.settings import Project, Settings
from tests.background import IN_BACKGROUND


def ask(lake: Lake, sql: str, format: str = "json"):
    out = StringIO()
    sql_command.run(lake, sql, format, out)
    return json.loads(out.getvalue()) if format == "json" else out.getvalue()


def test_everything_is_there_and_typed_before_there_is_data(tmp_path):
    lake = Lake(tmp_path)
    path = catalog.publish(lake)
    con = duckdb.connect()
    con.execute(f"ATTACH '{path}' AS cat (TYPE duckdb, READ_ONLY)")
    for name in (*TABLES, *(view.name for view in models.load().views)):
        assert con.execute(f'SELECT count(*) FROM cat."{name}"').fetchall() == [(0,)]
    for name, table in TABLES.items():
        described = [tuple(r[:2]) for r in con.execute(f'DESCRIBE cat."{name}"').fetchall()]
        assert described == [(c.name, c.type) for c in table.columns]
    version = con.execute("SELECT tags FROM duckdb_databases() WHERE database_name = 'cat'").fetchall()[0][0]
    con.close()
    assert version["storage_version"].startswith("v1.5")
    assert {p.name for p in tmp_path.iterdir()} == {"srt.duckdb", "locks"}


def test_publishing_copies_no_data(tmp_path):
    few, many = (catalog.publish(small_lake(tmp_path / str(n), n=n)).stat().st_size for n in (8, 400))
    assert few == many


def test_a_reader_in_another_folder_sees_the_data(tmp_path):
    lake = small_lake(tmp_path / "home")
    path = catalog.publish(lake)
    code = (
        f"import duckdb; c = duckdb.connect(); c.execute(\"ATTACH '{path}' AS x (TYPE duckdb, READ_ONLY)\");"
        "print(c.execute('SELECT count(*) FROM x.candidate_scores').fetchall()[0][0])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "32"


def test_a_moved_home_is_published_again(tmp_path):
    small = small_lake(tmp_path / "old")
    catalog.publish(small)
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert ask(Lake(tmp_path / "new"), "SELECT count(*) AS n FROM candidates") == [{"n": 32}]


def test_new_content_and_a_broken_file_are_noticed(tmp_path):
    lake = small_lake(tmp_path)
    path = catalog.ensure_published(lake)
    before = path.stat().st_ino
    catalog.ensure_published(lake)
    assert path.stat().st_ino == before
    lake.commit("raw_rejects", [], fingerprint=Fingerprint.of(of="y"), code_version="1")
    assert ask(lake, "SELECT count(*) AS n FROM raw_rejects") == [{"n": 0}]
    path.write_bytes(b"no database")
    assert ask(lake, "SELECT count(*) AS n FROM raw_records") == [{"n": 8}]


def test_readers_are_undisturbed_while_a_run_writes(tmp_path):
    lake = small_lake(tmp_path)
    settings = Settings(project=Project(home=tmp_path))
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set() or len(seen) < 2:
            seen.append(ask(lake, "SELECT count(*) AS n FROM decisions")[0]["n"])

    reader = threading.Thread(target=read)
    reader.start()
    for top_k in (0, 1, 2, 3):
        decide.STAGE.run(
            settings.model_copy(update={"selection": settings.selection.model_copy(update={"top_k": top_k})}),
            lake,
            student="tiny",
        )
    stop.set()
    reader.join()
    assert set(seen) <= {0, 8} and len(seen) > 1


REFUSED = [
    "INSERT INTO candidates VALUES (1)",
    "CREATE TABLE x (a INT)",
    "CREATE TEMP TABLE x (a INT)",
    "DROP VIEW decisions",
    "ATTACH '/tmp/other.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "PRAGMA version",
    "CALL pragma_version()",
    "COPY (SELECT 1) TO '/tmp/srt_leak.csv'",
    "COPY (SELECT 1) TO '{root}/leak.parquet'",
    "EXPORT DATABASE '/tmp/srt_leak'",
    "SELECT 1; SELECT 2",
    "",
    "SELECT * FROM read_text('/etc/hostname')",
    "SELECT * FROM '/etc/hostname'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_text('{root}/../secret.toml')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT getenv('HOME')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM read_duckdb('/tmp/other.db')",
    "SELECT * FROM parquet_metadata('/tmp/other.parquet')",
    "SELECT * FROM query('COPY (SELECT 1) TO ''/tmp/srt_leak.csv''')",
    "SELECT * FROM query_table('/etc/hostname')",
    "SELECT * FROM read_parquet('http://127.0.0.1:1/x')",
    "SELECT * FROM secret_frame",
    "CREATE SECRET s (TYPE s3)",
    "DETACH srt",
    "USE memory",
    "EXPLAIN ANALYZE SELECT 1",
    "CHECKPOINT",
]


@pytest.mark.parametrize("sql", REFUSED)
def test_nothing_but_a_select_within_the_home(tmp_path, sql, monkeypatch):
    lake = Lake(tmp_path)
    (tmp_path / "secret.toml").write_text("token")
    secret_frame = [1]  # noqa: F841  # a Python variable must not be found by name
    with pytest.raises(UserError):
        ask(lake, sql.format(root=lake.root))
    assert not Path("/tmp/srt_leak.csv").exists() and not Path("/tmp/srt_leak").exists()
    assert not (lake.root / "leak.parquet").exists()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 AS a",
        "FROM candidates",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "SHOW TABLES",
        "DESCRIBE decisions",
        "SUMMARIZE raw_records",
        "SELECT 1;",
    ],
)
def test_selects_of_all_kinds_are_taken(tmp_path, sql):
    assert isinstance(ask(Lake(tmp_path), sql), list)


# `srt sql` that says each time when it is about to ask DuckDB for something.
TELLING = """
import sys
from srt_assets.cli import main
from srt_assets.core.sql import query
ask = query._interruptible
def tell(con, call, *arguments):
    def told(*given):
        print("asks", flush=True)
        return call(*given)
    return ask(con, told, *arguments)
query._interruptible = tell
main()
"""


@pytest.mark.parametrize("before", [(), IN_BACKGROUND], ids=["", "in the background"])
@pytest.mark.parametrize(
    ("asked", "sql"),
    [
        (1, "SELECT count(*) FROM range(3000000000) a, range(100) b WHERE hash(a.range + b.range) = 1"),
        # Rows enough that DuckDB hands them out before it is through, and then none for ever.
        (2, "SELECT range FROM range(3000000000000) WHERE range < 200000 OR hash(range) = 1"),
    ],
    ids=["while it is computed", "while rows are fetched"],
)
def test_a_long_query_is_stopped_by_ctrl_c(tmp_path, before, asked, sql):
    command = [*before, sys.executable, "-c", TELLING, "sql", sql, "--format", "csv"]
    env = {**os.environ, "SRT_HOME": str(catalog.publish(Lake(tmp_path)).parent)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as srt:
        try:
            while asked and (line := srt.stdout.readline()):
                asked -= line == "asks\n"
            srt.send_signal(signal.SIGINT)
            srt.communicate(timeout=120)
        finally:
            srt.kill()
    assert not asked and srt.returncode == 130


def test_ctrl_c_before_the_query_has_begun_is_not_forgotten(tmp_path):
    """DuckDB forgets it; the thread that asks has not got so far on a busy machine."""
    con = duckdb.connect()
    stopped = threading.Event()

    def begin_late(sql):
        main = threading.main_thread().ident
        while "result" not in [frame.name for frame in traceback.extract_stack(sys._current_frames()[main])]:
            time.sleep(0.01)  # until it waits for the answer
        signal.pthread_kill(main, signal.SIGINT)
        assert stopped.wait(120)
        return con.execute(sql)

    class Told:
        def interrupt(self):
            con.interrupt()
            stopped.set()

    endless = "SELECT count(*) FROM range(3000000000) a, range(100) b WHERE hash(a.range + b.range) = 1"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            query._interruptible(Told(), begin_late, endless)
    finally:
        signal.signal(signal.SIGINT, before)
        con.close()


def test_a_query_whose_data_went_away_is_not_called_wrong(tmp_path, monkeypatch):
    lake = small_lake(tmp_path)
    path = catalog.publish(lake)
    monkeypatch.setattr(query, "ensure_published", lambda _: path)
    for part in lake.parts("raw_records"):
        part.unlink()
    with pytest.raises(StageError, match="ask again"):
        ask(lake, "SELECT count(*) FROM raw_records")


def test_a_pivot_needs_its_values(tmp_path):
    lake = Lake(tmp_path)
    with pytest.raises(UserError, match="ON outcome IN"):
        ask(lake, "PIVOT decisions ON outcome USING count(*)")
    assert ask(lake, "PIVOT decisions ON outcome IN ('kept') USING count(*) GROUP BY student") == []


def test_json_round_trips(tmp_path):
    sql = """SELECT 0.1::DOUBLE + 0.2::DOUBLE AS f, 'nan'::DOUBLE AS n, 'inf'::DOUBLE AS i, 
        170141183460469231731687303715884105727::HUGEINT AS h,
        '[bold]"é' AS t, NULL AS z, 1 AS d, 2 AS d,
        [1.5, NULL] AS l, TIMESTAMP '2026-01-02 03:04:05' AS ts, true AS b"""
    row = ask(Lake(tmp_path), sql)[0]
    assert row == {
        "f": 0.1 + 0.2,
        "n": None,
        "i": None,
        "h": 2**127 - 1,
        "t": '[bold]"é',
        "z": None,
        "d": 1,
        "d_1": 2,
        "l": [1.5, None],
        "ts": "2026-01-02T03:04:05",
        "b": True,
    }
    assert len(ask(Lake(tmp_path), "SELECT * FROM range(25000)")) == 25000
    assert ask(Lake(tmp_path), "SELECT 1 AS a WHERE false") == []


def test_csv_and_table(tmp_path):
    lake = Lake(tmp_path)
    assert ask(lake, "SELECT 1 AS a, NULL AS b, 'x,\"y\"' AS c, true AS d", "csv") == 'a,b,c,d\n1,,"x,""y""",true\n'
    table = ask(lake, "SELECT '[red]not markup[/red]' AS text FROM range(300)", "table")
    assert "[red]not markup[/red]" in table and "300 rows, the first 200 shown" in table
    table = ask(lake, "SELECT 'a' || chr(27) || '[2J' || chr(8238) || chr(10) || 'b\u00e9' AS text", "table")
    assert "a\\x1b[2J\\u202e" in table and "bé" in table and "\x1b" not in table


def test_a_row_wider_than_the_terminal_is_printed_upright(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")

    class Terminal(StringIO):
        def isatty(self):
            return True

    wide = ", ".join(f"{i} AS a_column_with_a_long_name_{i}" for i in range(12))
    out = Terminal()
    sql_command.run(Lake(tmp_path), f"SELECT {wide}", "table", out)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()
    assert max(map(len, lines)) <= 60 and sum("a_column_with_a_long_name_" in line for line in lines) == 12
    assert "1 row" in lines[-1]


def test_wrong_names_get_the_nearest(tmp_path):
    with pytest.raises(UserError, match="decisions"):
        ask(Lake(tmp_path), "SELECT * FROM decision")
    with pytest.raises(UserError, match="did you mean decisions"):
        srt_assets.read("decision", home=tmp_path)
    with pytest.raises(UserError, match="no column student"):
        srt_assets.read("raw_records", student="tiny", home=tmp_path)


def test_read_gives_a_frame_of_one_student(tmp_path):
    small_lake(tmp_path, students=("a", "b"))
    assert len(srt_assets.read("candidate_scores", home=tmp_path)) == 64
    frame = srt_assets.read("candidate_scores", student="b", home=tmp_path)
    assert set(frame.student) == {"b"} and frame.log_ifd.dtype == "float64"


def test_read_works_in_a_notebook_that_holds_the_file_for_writing(tmp_path):
    held = duckdb.connect(str(catalog.publish(small_lake(tmp_path, n=4))))
    assert len(srt_assets.read("raw_records", home=tmp_path)) == 4
    held.close()
