"""Copies of the homes in `homes/`, which an older program made: opened, asked, and what a run of the present one does.

`open_home` unpacks one somewhere else than it was made. The commands run in this process, as a user types them.
"""

import contextlib
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from srt_assets.cli import main
from srt_assets.core.lake import Lake
from srt_assets.core.scoring import scorer
from srt_assets.core.students import checkpoints
from srt_assets.core.training import launch
from srt_assets.settings import Settings, load_settings

ARCHIVES = Path(__file__).parent / "homes"
# What reading may write, beside the lake: views with absolute paths, locks, spilled data, and a student's fingerprint,
# which is remembered by the places of its files on the disk.
WRITTEN_BY_READING = ("srt.duckdb", "locks", "tmp", "srt_student.json")


@dataclass(frozen=True)
class OldHome:
    """An unpacked home: `folder` holds its srt.toml, data, and `answers`, what the older program said of it."""

    name: str
    folder: Path
    settings: Settings
    lake: Lake

    @property
    def students(self) -> list[str]:
        return checkpoints.list_students(self.lake)

    def srt(self, *words: str) -> tuple[int, str]:
        """Type a command in its folder: the exit code, and what it printed."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["srt", *words])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        return int(ended.value.code or 0), out.getvalue() + err.getvalue()

    def sql(self, query: str) -> list[dict[str, Any]]:
        code, printed = self.srt("sql", query, "--format", "json")
        assert code == 0, printed
        return json.loads(printed)

    def files(self) -> dict[str, str]:
        """Hash by name of every file of the home, links followed, but for those that reading may write."""
        found = {}
        for path in sorted(p for p in self.lake.home.rglob("*") if p.is_file()):
            name = path.relative_to(self.lake.home)
            if name.parts[0] not in WRITTEN_BY_READING and name.name not in WRITTEN_BY_READING:
                found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def answers(self) -> dict[str, list[str]]:
        """Rows by table as the older program gave them, of the tables that had any."""
        return {name: _sorted(rows) for name, rows in self._answers().items() if rows}

    def answers_now(self) -> dict[str, list[str]]:
        """The same columns of the same tables, asked now. JSON holds every digit of a number."""
        now = {}
        for name, rows in self._answers().items():
            if rows:
                columns = ", ".join(f'"{column}"' for column in rows[0])
                now[name] = _sorted(self.sql(f"SELECT {columns} FROM {name}"))
        return now

    def _answers(self) -> dict[str, list[dict[str, Any]]]:
        return {p.stem: json.loads(p.read_text()) for p in sorted((self.folder / "answers").glob("*.json"))}


def _sorted(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def open_home(name: str, place: Path) -> OldHome:
    """Unpack a home under `place`."""
    with tarfile.open(ARCHIVES / f"{name}.tar.xz") as archive:
        archive.extractall(place, filter="data")
    settings = load_settings(place / name / "srt.toml")
    return OldHome(name, place / name, settings, Lake(settings.home))


@dataclass
class Work:
    """What was done since the watch began: sequences given to a student, commands of training processes."""

    sequences: int = 0
    trainings: list[str] = field(default_factory=list)


@contextlib.contextmanager
def watched() -> Iterator[Work]:
    """Count scoring and trainings in this process."""
    work = Work()
    score, command = scorer.Scorer.score, launch.command

    def counted(self: scorer.Scorer, passes: Any, *rest: Any, **more: Any) -> Any:
        work.sequences += len(passes)
        return score(self, passes, *rest, **more)

    def noted(job_file: Path, processes: int) -> list[str]:
        work.trainings.append(str(job_file))
        return command(job_file, processes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer.Scorer, "score", counted)
        patch.setattr(launch, "command", noted)
        yield work
