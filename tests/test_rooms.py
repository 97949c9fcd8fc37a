"""Data flows one way: a room of `core` imports no later room, not even within a function or for types only.

Nor what knows all rooms, such as the list of stages.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import srt_assets

CORE = Path(srt_assets.__file__).parent / "core"
PACKAGE = "srt_assets.core"
# In the order in which rows go through them.
ROOMS = ("records", "teacher", "students", "scoring", "selection", "training")


def imports(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of a file of this package, names that may be modules included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from ((node.lineno, str(a.value)) for a in node.args if isinstance(a, ast.Constant))


def rooms_of(module: str) -> set[str]:
    return {room for room in ROOMS if f"{module}.".startswith(f"{PACKAGE}.{room}.")}


def above_the_rooms(core: Path) -> set[str]:
    """Modules beside the rooms that import one of them."""
    files = {f"{PACKAGE}.{path.stem}": path for path in core.glob("*.py")}
    return {m for m, path in files.items() if any(rooms_of(found) for _, found in imports(path, PACKAGE))}


def backwards(core: Path) -> list[str]:
    """Imports of a later room, or of a module that stands above the rooms."""
    found, above = [], above_the_rooms(core)
    for place, room in enumerate(ROOMS):
        for path in sorted((core / room).rglob("*.py")):
            package = ".".join([PACKAGE, *path.relative_to(core).parent.parts])
            for line, module in imports(path, package):
                later = rooms_of(module) & set(ROOMS[place + 1 :])
                if later or any(f"{module}.".startswith(f"{name}.") for name in above):
                    found.append(f"{path.relative_to(core)}:{line} imports {module}")
    return found


def test_no_room_imports_a_later_one() -> None:
    assert all((CORE / room).is_dir() for room in ROOMS)
    assert f"{PACKAGE}.stages" in above_the_rooms(CORE)
    assert backwards(CORE) == []


def test_files_know_no_forms_and_forms_know_no_tables() -> None:
    records = f"{PACKAGE}.records"
    for room, known in (("files", {"files"}), ("forms", {"files", "forms"})):
        allowed = {f"{records}.{name}" for name in known}
        for path in (CORE / "records" / room).glob("*.py"):
            found = {m for _, m in imports(path, f"{records}.{room}") if f"{m}.".startswith(f"{records}.")}
            outside = {m for m in found if not any(f"{m}.".startswith(f"{name}.") for name in allowed)}
            assert not outside, f"{path.name} imports {outside}"


@pytest.mark.parametrize(
    ("text", "is_backwards"),
    [
        ("from srt_assets.core.selection.policies import policy_rows", True),
        ("from srt_assets.core import selection", True),
        ("import srt_assets.core.training.rows", True),
        ("from ..selection import policies", True),
        ("from .. import training", True),
        ("def f():\n    from srt_assets.core.selection import decide", True),
        ("if TYPE_CHECKING:\n    from srt_assets.core.selection import decide", True),
        ("import importlib\nimportlib.import_module('srt_assets.core.training')", True),
        ("from srt_assets.core import stages", True),
        ("from srt_assets.core.stages import STAGES", True),
        ("from srt_assets.core.stage import Stage", False),
        ("from srt_assets.core.records import raw", False),
        ("from . import selection", False),  # a module of its own
        ("from srt_assets.core.selections import x", False),
    ],
)
def test_every_kind_of_import_is_seen(tmp_path: Path, text: str, is_backwards: bool) -> None:
    for room in ROOMS:
        (tmp_path / room).mkdir()
    (tmp_path / "scoring" / "mine.py").write_text(text)
    (tmp_path / "stages.py").write_text("from srt_assets.core.records import raw")
    (tmp_path / "stage.py").write_text("from srt_assets.core import lake")
    assert bool(backwards(tmp_path)) == is_backwards
