"""The README as a contract: what it names exists, and what exists is named."""

import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer.main

from srt_assets.cli import app
from srt_assets.core import stages
from srt_assets.core.sql import models
from srt_assets.core.tables import TABLES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(?:bash|sh|console)\n(.*?)```", README, re.S)
LINES = [line.removeprefix("$ ").strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
COMMANDS = typer.main.get_command(app)


TABLES_PAGE = ROOT / "docs" / "tables.md"


def tables_page() -> str:
    """The page of assets, tables and views, made from what the program knows of them."""
    lines = [
        "# Assets, tables, views",
        "",
        "Made from the list of stages, `tables.py` and `dbt_like_sql/`: `UPDATE_DOCS=1 pytest tests/test_docs.py`.",
        "",
        "| asset | made for | needs | writes the tables |",
        "|---|---|---|---|",
    ]
    for stage in stages.STAGES:
        whom, needs = "each student" if stage.per_student else "all students", ", ".join(stage.needs)
        written = ", ".join(f"`{name}`" for name in (*stage.tables, *stage.feeds))
        lines.append(f"| `{stage.asset}` | {whom} | {needs} | {written} |")
    for table in TABLES.values():
        key = ", ".join(f"`{name}`" for name in table.key)
        lines += ["", f"## {table.name}", "", table.description, f"One row for each {key}.", ""]
        lines += ["| column | type | meaning |", "|---|---|---|"]
        lines += [f"| `{c.name}` | {c.type} | {c.description.replace('|', chr(92) + '|')} |" for c in table.columns]
    lines += ["", "# Views", "", "| view | what it shows |", "|---|---|"]
    lines += [f"| `{m.name}` | {m.description.replace('|', chr(92) + '|')} |" for m in models.load().views]
    return "\n".join(lines) + "\n"


def test_the_page_of_tables_is_what_the_program_knows() -> None:
    if os.environ.get("UPDATE_DOCS"):
        TABLES_PAGE.write_text(tables_page())
    assert TABLES_PAGE.read_text() == tables_page(), "run UPDATE_DOCS=1 pytest tests/test_docs.py"


def commands(group=COMMANDS, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    found: dict[tuple[str, ...], object] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, (*prefix, name))
        else:
            found[(*prefix, name)] = command
    return found


def test_every_command_is_in_the_readme() -> None:
    for path in commands():
        assert f"srt {' '.join(path)}" in README, f"README says nothing of `srt {' '.join(path)}`"


def test_every_command_has_a_help_text() -> None:
    for path, command in commands().items():
        assert command.help, path


def test_every_srt_line_in_the_readme_is_a_command_with_options_that_exist() -> None:
    known = commands()
    seen = 0
    for line in LINES:
        if not re.match(r"(\w+=\S+ )*srt ", line):
            continue
        words = shlex.split(line.split(" #")[0])
        words = words[words.index("srt") + 1 :]
        path = next((tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in known), None)
        assert path, f"no such command: {line}"
        options = {o for parameter in known[path].params for o in parameter.opts}
        for word in words[len(path) :]:
            assert not word.startswith("--") or word.split("=")[0] in options, f"no option {word}: {line}"
        seen += 1
    assert seen >= 10


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"make ([a-z]+)", README))
    assert {"demo", "test", "ui"} <= named <= targets


def test_every_file_the_readme_links_is_there() -> None:
    for target in re.findall(r"\]\((?!http|#)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_variable_the_readme_sets_is_a_setting() -> None:
    from srt_assets.settings import Settings

    for section, key in re.findall(r"SRT_([A-Z]+)__([A-Z_]+)", README):
        fields = Settings.model_fields[section.lower()].annotation.model_fields
        assert key.lower() in fields, f"SRT_{section}__{key}"


@pytest.mark.parametrize("name", ["raw_records", "decisions", "score_summary", "selection_summary", "teacher_cost"])
def test_the_tables_people_start_with_are_named(name: str) -> None:
    assert name in README


def test_pins_and_ranges_agree() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if "==" in line:
            name, version = line.split("==")
            pins[name.lower().replace("_", "-")] = version
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["local"],
        *project["optional-dependencies"]["dev"],
    ]
    for text in wanted:
        requirement = Requirement(text)
        pin = pins[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(pin), f"{text} does not admit the tested {pin}"
