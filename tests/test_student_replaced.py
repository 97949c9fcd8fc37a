"""A student that is registered anew is the old one or the new one at every moment, whenever its process is killed."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from student_lake import settings_for
from tiny_student import make_tiny_student

from srt_assets.core.lake import Lake
from srt_assets.core.students import checkpoints
from srt_assets.core.training import finished

# Registers the student anew in a child that is killed before its n-th change to a file, for every n there is.
KILLED = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from srt_assets.core.lake import Lake
from srt_assets.core.students import checkpoints
from srt_assets.settings import Settings

home, link, old, new = map(Path, sys.argv[1:])
CHANGES = {"os.rename", "os.mkdir", "os.symlink", "os.remove", "os.rmdir", "shutil.rmtree"}

def point(to):
    link.unlink(missing_ok=True)
    link.symlink_to(to)

def add():
    return checkpoints.add(Settings(), Lake(home), str(link), "tiny")

def child(deadly):
    count = itertools.count(1)
    def hook(event, args):
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax")
        if (event in CHANGES or writes) and next(count) == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    add()
    os._exit(0)

point(new)
fresh = add()
shutil.rmtree(home / "students")
for deadly in itertools.count(1):
    point(old)
    before = add()
    point(new)
    pid = os.fork()
    if pid == 0:
        child(deadly)
    if os.waitpid(pid, 0)[1] == 0:
        break
    lake = Lake(home)
    assert checkpoints.list_students(lake) == ["tiny"], deadly
    assert checkpoints.taken_by(lake, "tiny", str(home)), deadly
    assert checkpoints.get(lake, "tiny") in (before, fresh), deadly
    assert add() == fresh, deadly
    assert os.listdir(home / "students") == ["tiny"], (deadly, os.listdir(home / "students"))
print(deadly)
"""


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    return make_tiny_student(tmp_path / "old"), make_tiny_student(tmp_path / "new", seed=1)


def test_a_student_outlives_whoever_is_killed_while_replacing_it(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    paths = map(str, (tmp_path / "home", tmp_path / "link", *sources))
    done = subprocess.run([sys.executable, "-c", KILLED, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_a_replacement_that_fails_leaves_the_student(
    tmp_path: Path, lake: Lake, sources: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (link := tmp_path / "link").symlink_to(sources[0])
    first = checkpoints.add(settings_for(), lake, str(link), "tiny")
    link.unlink()
    link.symlink_to(sources[1])
    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if path.name.startswith(".aside"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Path, "replace", full)
        checkpoints.add(settings_for(), lake, str(link), "tiny")
    assert [p.name for p in (lake.home / "students").iterdir()] == ["tiny"]
    assert checkpoints.get(lake, "tiny") == first


def test_a_checkpoint_of_a_student_that_is_being_replaced_is_not_pruned(lake: Lake, sources: tuple[Path, Path]) -> None:
    checkpoints.add(settings_for(), lake, str(sources[0]), "tiny")
    (lake.home / "students" / "tiny").rename(lake.home / "students" / ".old-tiny")
    assert finished._used_by_students(lake) == {sources[0]}


def test_a_look_at_a_student_does_not_undo_its_replacement(
    lake: Lake, sources: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = checkpoints.add(settings_for(), lake, str(sources[0]), "tiny")
    make_tiny_student(sources[0], seed=5)
    described = json.loads((info.path / checkpoints.RECORD).read_text())
    computed = checkpoints.Files.fingerprint

    def slow(files: checkpoints.Files) -> str:
        # Meanwhile somebody else registers it anew.
        (info.path / checkpoints.RECORD).write_text(json.dumps(described | {"source": "/elsewhere"}))
        return computed(files)

    monkeypatch.setattr(checkpoints.Files, "fingerprint", slow)
    checkpoints.get(lake, "tiny")
    assert json.loads((info.path / checkpoints.RECORD).read_text())["source"] == "/elsewhere"


@pytest.mark.parametrize("text", ["3", "[]", "null", '"x"', "{}", '{"source": "x"}', "[1]", '{"source": 1}', "\xff"])
def test_a_record_of_nonsense_is_damage_too(lake: Lake, sources: tuple[Path, Path], text: str) -> None:
    info = checkpoints.add(settings_for(), lake, str(sources[0]), "tiny")
    (info.path / checkpoints.RECORD).write_bytes(text.encode("latin-1"))
    with pytest.raises(checkpoints.UserError, match="is damaged"):
        checkpoints.get(lake, "tiny")
    assert checkpoints.add(settings_for(), lake, str(sources[0]), "tiny") == info
