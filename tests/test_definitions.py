"""The graph: it loads light, every asset is documented, and a change of its shape is a change of the snapshot.

After a wanted change: UPDATE_SNAPSHOT=1 pytest tests/test_definitions.py
"""

import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import dagster as dg
import pytest
import yaml

ROOT = Path(__file__).parent.parent
SNAPSHOT = Path(__file__).parent / "graph_snapshot.json"
HEAVY = {"torch", "transformers", "litellm", "pandas", "matplotlib", "trl", "datasets"}


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    from srt_assets.definitions import build_defs
    from srt_assets.settings import load_settings

    return build_defs(load_settings(ROOT / "srt.toml"))


def test_definitions_load_without_anything_heavy() -> None:
    code = f"import sys, srt_assets.definitions; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]", done.stdout


def test_core_knows_no_dagster() -> None:
    for path in (ROOT / "srt_assets" / "core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                # dagster_pipes is the child's side of a process boundary: no Dagster comes with it.
                assert name.split(".")[0] != "dagster", f"{path}:{node.lineno} imports {name}"
                assert not name.startswith("srt_assets.defs"), f"{path}:{node.lineno} imports {name}"


def test_definitions_are_loadable(defs: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(defs)


def test_every_asset_has_description_group_kind_and_code_version(defs: dg.Definitions) -> None:
    for spec in defs.resolve_all_asset_specs():
        name = spec.key.to_user_string()
        assert spec.description, f"{name} has no description"
        assert spec.group_name and spec.group_name != "default", f"{name} has no group"
        assert spec.kinds, f"{name} has no kind"
        assert spec.code_version, f"{name} has no code version"


def graph(defs: dg.Definitions) -> dict:
    checks = sorted(
        f"{key.asset_key.to_user_string()}: {key.name}" for key in defs.resolve_asset_graph().asset_check_keys
    )
    assets = {
        spec.key.to_user_string(): {
            "deps": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
            "group": spec.group_name,
            "partitioned": spec.partitions_def is not None,
            "kinds": sorted(spec.kinds),
        }
        for spec in defs.resolve_all_asset_specs()
    }
    jobs = {
        job.name: sorted(key.to_user_string() for key in defs.resolve_job_def(job.name).asset_layer.selected_asset_keys)
        for job in defs.jobs or []
    }
    sensors = sorted(sensor.name for sensor in defs.sensors or [])
    return {"assets": dict(sorted(assets.items())), "checks": checks, "jobs": jobs, "sensors": sensors}


def test_the_graph_is_the_snapshot(defs: dg.Definitions) -> None:
    found = json.loads(json.dumps(graph(defs)))
    if os.environ.get("UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(SNAPSHOT.read_text()), "run UPDATE_SNAPSHOT=1 pytest tests/test_definitions.py"


def test_every_entry_point_loads_the_same_code_location() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["dg"]["project"]
    [entry] = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    module = entry["python_module"]
    assert module["module_name"] == project["code_location_target_module"] == "srt_assets.definitions"
    assert module["location_name"] == project["code_location_name"]


def test_automation_is_off_until_the_setting_says_on(defs: dg.Definitions) -> None:
    from srt_assets.definitions import build_defs
    from srt_assets.settings import Automation, Settings

    def running(some: dg.Definitions) -> set[str]:
        found = {s.name for s in some.sensors or [] if s.default_status.value == "RUNNING"}
        return found | {s.name for s in some.schedules or [] if s.default_status.value == "RUNNING"}

    assert running(defs) == {"dead_runs", "retired_students"}
    on = build_defs(Settings(automation=Automation(enabled=True)))
    assert {"new_student_checkpoints", "nightly"} <= running(on)
