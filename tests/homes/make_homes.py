"""Homes made by an older program, packed beside this file: what an upgrade must open without paying anything again.

    git worktree add ../old b6bf709
    python tests/homes/make_homes.py --program ../old [demo] [sharegpt] [half]

What belongs here: one `NAME.tar.xz` for each way a home can look when a newer program meets it, small (all together
under 2 MB), made by the program of one commit, never edited by hand and never made anew by a newer program. What they
are read from lies in `sources/NAME/`: a `srt.toml` and the data.

    demo      the demo's settings and data with the embedded teacher's own words; a tiny student; one training
    sharegpt  conversations with rejected rows, a teacher with faults; two tiny students; a training and an arm each
    half      the teacher ran out of money, then the next run was killed: sealed replies, unsealed ones, nothing after

Each archive holds one folder: `srt.toml`, the data, the home `.srt`, in which the student's source lies as well, so
that links into it move with the home, and in `answers/` what the older program answered to `srt sql`. Left out is what
the next run makes anew (the Dagster instance, locks, spilled data): an instance that is newer than its lake is what a
copy of a home elsewhere has, too. `tests/test_old_homes.py` opens them.

Made again, a home has the same tables, but other names of parts, times and absolute paths, and the demo's teacher other
words.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import duckdb
from teachers import fake_teacher, moody, poor, silent_after

HERE = Path(__file__).resolve().parent
HOME = ".srt"
LEFT_OUT = ("dagster", "locks", "tmp", "logs")
# When b6bf709 was committed; only so that the same files give the same archive.
MTIME = 1_795_712_738
CLI = "from srt_assets.cli import main; main()"
ANSWERS = ("candidates", "candidate_scores", "decisions", "selected_set")


class Program:
    """The older program, as child processes; `folder` is a checkout of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        if not (self.folder / "srt_assets" / "cli.py").is_file():
            sys.exit(f"{folder} is no checkout of srt-assets")
        # Its own helpers too: this clone's may change.
        sys.path.insert(0, str(self.folder / "tests"))

    def start(
        self, folder: Path, code: str, *arguments: str, teacher: str = "", out: IO[bytes] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start Python code with the program on its path, in `folder`."""
        mine = {k: v for k, v in os.environ.items() if not k.startswith("SRT_") and k != "DAGSTER_HOME"}
        env = mine | {
            "PYTHONPATH": f"{self.folder}{os.pathsep}{self.folder / 'tests'}",
            "HF_HUB_OFFLINE": "1",
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "OPENAI_API_KEY": "key-of-nobody",
            # Not teacher.api_base: the home would be changed wherever the teacher gets another port.
            "OPENAI_BASE_URL": teacher,
        }
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.Popen(command, cwd=folder, env=env, stdout=out, start_new_session=True)

    def srt(
        self, folder: Path, *arguments: str, teacher: str = "", expect: int = 0, out: IO[bytes] | None = None
    ) -> None:
        """Run a command of it to its end."""
        code = self.start(folder, CLI, *arguments, teacher=teacher, out=out).wait()
        if code != expect:
            sys.exit(f"`srt {' '.join(arguments)}` ended with {code}, not {expect}, in {folder}")

    def add_student(self, folder: Path, slug: str, seed: int) -> None:
        """Register a tiny student whose files lie inside the home."""
        source = f"{HOME}/sources/{slug}"
        make = f"from tiny_student import make_tiny_student as make; make({str(folder / source)!r}, seed={seed})"
        if self.start(folder, make).wait() != 0:
            sys.exit("no tiny student could be made")
        self.srt(folder, "students", "add", source, "--name", slug)

    def write_answers(self, folder: Path) -> None:
        """What it says of the finished home, for a newer one to say the same."""
        (folder / "answers").mkdir()
        for name in ANSWERS:
            with (folder / "answers" / f"{name}.json").open("wb") as file:
                self.srt(folder, "sql", f"SELECT * FROM {name} ORDER BY ALL", "--format", "json", out=file)


# -- the homes


def demo(program: Program, folder: Path) -> None:
    """The built-in demo; the student alone is another."""
    given = (program.folder / "srt.toml").read_text()
    data = "srt_assets/sample/demo.json"
    if data not in given:
        sys.exit("the program's srt.toml does not name the demo's data")
    (folder / "srt.toml").write_text(given.replace(data, "demo.json"))
    shutil.copyfile(program.folder / data, folder / "demo.json")
    program.srt(folder, "run", "reflected_responses")
    program.add_student(folder, "tiny", seed=seed_that_keeps_most(program, folder))
    program.srt(folder, "run")


def seed_that_keeps_most(program: Program, folder: Path) -> int:
    """Of some random students the one that keeps the most rows, tried on a copy: many of them keep none of the demo."""
    with tempfile.TemporaryDirectory() as place:
        copy = shutil.copytree(folder, Path(place) / folder.name)
        for seed in range(8):
            program.add_student(copy, f"seed-{seed}", seed)
        program.start(copy, CLI, "run", "selected_set").wait()  # a check fails for those that keep none
        parts = str(copy / HOME / "lake/decisions/*/*.parquet")
        sql = f"SELECT student, count(*) FILTER (kept) FROM read_parquet('{parts}') GROUP BY 1 ORDER BY 2 DESC, 1"
        slug, kept = duckdb.sql(sql).fetchall()[0]
    print(f"{slug} keeps {kept} rows")
    return int(slug.removeprefix("seed-"))


def sharegpt(program: Program, folder: Path) -> None:
    """Everything that can become of a row and of a reply."""
    program.add_student(folder, "first", seed=0)
    program.add_student(folder, "second", seed=1)
    with fake_teacher(moody) as teacher:
        program.srt(folder, "run", teacher=teacher)


def half(program: Program, folder: Path) -> None:
    """Two runs that did not come to their end: five replies and no funds; four more replies and `kill -9`."""
    program.add_student(folder, "tiny", seed=0)
    with fake_teacher(poor(5)) as teacher:
        program.srt(folder, "run", teacher=teacher, expect=1)
    with fake_teacher(silent_after(4)) as teacher:
        run = program.start(folder, CLI, "run", teacher=teacher)
        patience = time.monotonic() + 300
        while unsealed_lines(folder) < 4:
            if run.poll() is not None or time.monotonic() > patience:
                sys.exit("the run ended, or waited, before it could be killed")
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def unsealed_lines(folder: Path) -> int:
    found = (folder / HOME / "lake" / "teacher_calls").glob("segment-*.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in found)


HOMES: dict[str, Callable[[Program, Path], None]] = {"demo": demo, "sharegpt": sharegpt, "half": half}


# -- packing


def pack(folder: Path, archive: Path) -> None:
    """Write a home's folder as an archive, without what the next run makes anew."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        inside = Path(entry.name).parts[1:]
        if len(inside) == 2 and inside[0] == HOME and (inside[1] in LEFT_OUT or inside[1].startswith(".")):
            return None
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = MTIME
        return entry

    with tarfile.open(archive, "w:xz", preset=9) as tar:
        tar.add(folder, folder.name, filter=plain)


def main() -> None:
    """Make the homes named, or all."""
    parser = argparse.ArgumentParser(description="Make homes with an older program and pack them beside this file.")
    parser.add_argument("--program", type=Path, required=True, help="a checkout of the older program")
    parser.add_argument("--out", type=Path, default=HERE, help="where the archives go")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(HOMES))
    given = parser.parse_args()
    if unknown := set(given.names) - set(HOMES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    program = Program(given.program)
    for name in given.names or HOMES:
        # It stays if something goes wrong, for a look at it.
        place = Path(tempfile.mkdtemp(prefix="srt-old-homes-"))
        folder = place / name
        if (HERE / "sources" / name).is_dir():
            shutil.copytree(HERE / "sources" / name, folder)
        else:
            folder.mkdir()
        HOMES[name](program, folder)
        program.write_answers(folder)
        archive = given.out / f"{name}.tar.xz"
        pack(folder, archive)
        shutil.rmtree(place)
        print(f"{archive}: {archive.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
