"""A home whose path has characters that mean something to DuckDB, SQL, globs or URLs is a home like any other."""

import json
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from selection_lake import small_lake

import srt_assets
from srt_assets.commands import doctor
from srt_assets.commands import sql as sql_command
from srt_assets.commands.export import export
from srt_assets.commands.report import report
from srt_assets.core.duck_paths import database_for, exactly
from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.selection import decide
from srt_assets.core.sql import catalog
from srt_assets.defs.instance import prepare_instance
from srt_assets.settings import Project, Settings

NAMES = [
    "a?b",
    "[x]",
    "a*b",
    "**",
    "[!x]-[0-9]",
    "it's",
    'a"b',
    "ü ñ",
    "100%",
    "a%20b",
    "a#b",
    "model=mine",
    "a\\b",
    "a\\b?[c]",
    "md:a;b",
    "two\nlines",
    "a?access_mode=READ_ONLY",
]
ATTACH = """
import sys, duckdb
for at in (sys.argv[1], sys.argv[2]):
    con = duckdb.connect()
    con.execute("ATTACH '" + at.replace("'", "''") + "' AS srt (READ_ONLY)")
    print(con.execute("SELECT count(*) FROM srt.candidate_scores").fetchone()[0])
    con.close()
print(duckdb.connect(sys.argv[1], read_only=True).execute("SELECT count(*) FROM decisions").fetchone()[0])
"""


def ask(lake: Lake, sql: str) -> list[dict]:
    out = StringIO()
    sql_command.run(lake, sql, "json", out)
    return json.loads(out.getvalue())


@pytest.mark.parametrize("name", NAMES)
def test_a_home_of_any_name_is_published_and_read(tmp_path: Path, name: str) -> None:
    lake = Lake(small_lake(tmp_path / name / "home").home)
    settings = Settings(project=Project(home=lake.home))
    decide.STAGE.run(settings, lake, student="tiny")
    # A copy whose path this one matches as a pattern: its rows must not be counted too.
    if (copy := name.translate(str.maketrans("*?[\\", "XXxX"))) != name:
        shutil.copytree(tmp_path / name, tmp_path / copy)
    assert ask(lake, "SELECT count(*) AS n FROM candidate_scores") == [{"n": 32}]
    assert ask(lake, "SELECT DISTINCT student FROM decisions") == [{"student": "tiny"}]
    assert len(srt_assets.read("decisions", home=lake.home)) == 8
    published = str(catalog.ensure_published(lake))
    seen = subprocess.run(
        [sys.executable, "-c", ATTACH, published, f"../{name}/home/srt.duckdb"],
        cwd=tmp_path / name,
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.split() == ["32", "32", "8"]
    assert not [path.name for path in lake.home.iterdir() if path.name.startswith(".")]
    export(settings, lake, "tiny", "alpaca", tmp_path / name / "set.jsonl")
    report(lake, "tiny", tmp_path / name / "page.html")


@pytest.mark.parametrize("name", ["plain", "a?b", "[x]"])
def test_a_query_reads_nothing_beside_the_lake_whatever_the_name(tmp_path: Path, name: str) -> None:
    lake = small_lake(tmp_path / name)
    (tmp_path / name / "secret.toml").write_text("token")
    for root in (str(lake.root), exactly(lake.root)):
        for place in (f"{root}/../secret.toml", f"{Path(root).parent}/secret.toml", f"{Path(root).parent}/*.toml"):
            with pytest.raises(UserError):
                ask(lake, f"SELECT * FROM read_text('{place}')")


def test_a_moved_database_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a?b").mkdir()
    with database_for(tmp_path / "a?b" / "x") as place:
        place.write_text("whole")
    assert (tmp_path / "a?b" / "x").read_text() == "whole" and not place.parent.exists()
    with database_for(tmp_path / "x") as place:
        assert place == tmp_path / "x"


def test_no_folder_to_build_in_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t?").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t?"))
    with pytest.raises(UserError, match="TMPDIR"):
        catalog.publish(Lake(tmp_path / "a?b"))


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_what_dagster_cannot_store_in_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = Settings(project=Project(home=tmp_path / name))
    with pytest.raises(UserError) as caught:
        prepare_instance(settings)
    assert str(tmp_path / name) in str(caught.value) and "DAGSTER_HOME" in str(caught.value)
    assert not (tmp_path / name).exists(), "said before anything is made"
    monkeypatch.setenv("SRT_HOME", str(settings.home))
    told = [f for f in doctor.examine() if "DAGSTER_HOME" in f.remedy]
    assert len(told) == 1 and told[0].level == "error"
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    assert prepare_instance(settings) == tmp_path / "dagster"
    assert not [f for f in doctor.examine() if "DAGSTER_HOME" in f.remedy]
    shutil.rmtree(tmp_path / "dagster")
