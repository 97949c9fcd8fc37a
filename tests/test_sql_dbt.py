"""Real dbt runs the folder as it is: the shipped files fit it, and if dbt is installed, it builds and says the same."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from selection_lake import small_lake

from srt_assets.core.selection import decide
from srt_assets.core.sql import catalog, models, views
from srt_assets.core.tables import TABLES
from srt_assets.settings import Project, Settings

DBT = shutil.which("dbt")
HEADER = "# Made from the tables and tests: UPDATE_SNAPSHOT=1 pytest tests/test_sql_dbt.py\n"


def project_facts() -> dict[str, Any]:
    warnings = {name: {"+severity": "warn"} for name, test in models.load().tests.items() if test.is_warning}
    return {
        "name": "srt_sql",
        "version": "1.0",
        "profile": "srt_sql",
        "model-paths": ["models"],
        "test-paths": ["tests"],
        "models": {"srt_sql": {"+materialized": "view"}},
        "data_tests": {"srt_sql": warnings},
    }


def source_facts() -> dict[str, Any]:
    tables = [
        {
            "name": name,
            "description": table.description,
            "columns": [{"name": c.name, "data_type": c.type, "description": c.description} for c in table.columns],
        }
        for name, table in TABLES.items()
    ]
    return {"version": 2, "sources": [{"name": models.SOURCE, "database": "srt", "schema": "main", "tables": tables}]}


@pytest.mark.parametrize(("place", "facts"), [("dbt_project.yml", project_facts), ("models/sources.yml", source_facts)])
def test_the_shipped_files_are_made_from_the_tables(place: str, facts: Any) -> None:
    path = models.folder() / place
    text = HEADER + yaml.safe_dump(facts(), sort_keys=False, allow_unicode=True, width=120)
    if os.environ.get("UPDATE_SNAPSHOT"):
        path.write_text(text)
    assert path.read_text() == text, "run UPDATE_SNAPSHOT=1 pytest tests/test_sql_dbt.py"


@pytest.mark.skipif(DBT is None, reason="dbt is not installed (pip install dbt-core dbt-duckdb)")
def test_real_dbt_builds_the_folder(tmp_path: Path) -> None:
    lake = small_lake(tmp_path / "home", students=("a", "b"))
    for student in ("a", "b"):
        decide.STAGE.run(Settings(project=Project(home=lake.home)), lake, student=student)
    shutil.copytree(models.folder(), tmp_path / "sql")
    environment = os.environ | {
        "SRT_DUCKDB": str(catalog.publish(lake)),
        "SRT_DBT": str(tmp_path / "dbt.duckdb"),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    }
    folder = str(tmp_path / "sql")
    command = [str(DBT), "build", "--project-dir", folder, "--profiles-dir", folder]
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-4000:]
    results = json.loads((tmp_path / "sql" / "target" / "run_results.json").read_text())["results"]
    status = {r["unique_id"].split(".")[2]: r["status"] for r in results}
    project = models.load()
    assert set(status) == set(project.models) | set(project.tests)
    assert {status[name] for name in project.models} == {"success"}
    for name, test in project.tests.items():
        expected = "pass" if not views.failing_rows(lake, name)[0] else "warn" if test.is_warning else "fail"
        assert status[name] == expected, name
    con = duckdb.connect(environment["SRT_DBT"])
    con.execute(f"ATTACH '{environment['SRT_DUCKDB']}' AS srt (READ_ONLY)")
    theirs, ours = (
        con.execute(
            f"SELECT student, sample_id, chosen, reason, margin_1 FROM {place}.decisions ORDER BY ALL"
        ).fetchall()
        for place in ("dbt.main", "srt.main")
    )
    con.close()
    assert theirs == ours and len(ours) == 16
