"""Homes of an older program under the present one: read without a change, run without paying, scoring or training.

Whoever changes what an old home costs says so here: the numbers are in `COSTS`, and why they are not 0 beside them.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_openai import FakeOpenAI, Plan
from old_homes import OldHome, open_home, watched

import srt_assets
from srt_assets.core.status import standings
from srt_assets.core.students import checkpoints
from srt_assets.core.teacher import ledger, local

FINISHED = ("demo", "sharegpt")
# Calls paid, rows scored, trainings run when the whole graph is run again.
COSTS = {"demo": (0, 0, 0), "sharegpt": (0, 0, 0)}
# What such a run may write all the same, and why: the column `path` says where the checkpoints lie now.
# `srt run` reads the data again, as this program does: the same records, other words for some rejects.
WRITTEN_AFTER_A_MOVE = ("lake/training_runs/", "lake/training_steps/", "lake/raw_")
NOBODY = "http://127.0.0.1:9/v1"
ASKED = (
    ("status",),
    ("estimate",),
    ("students", "list"),
    ("sql", "SELECT * FROM row_accounting"),
    ("sql", "SELECT * FROM teacher_cost"),
    ("sql", "SELECT * FROM score_summary"),
)


@pytest.fixture(autouse=True)
def _no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_teacher: None) -> None:
    """The embedded teacher must not start, no other can be reached, and Dagster's instance lies beside the home."""

    def started() -> None:
        raise AssertionError("the local teacher was started")

    monkeypatch.setattr(local, "serve", started)
    monkeypatch.setenv("OPENAI_BASE_URL", NOBODY)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenAI]:
    """A teacher that answers everything well, where the homes look for theirs."""
    with FakeOpenAI(lambda body, nth: Plan()) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base)
        yield fake


@pytest.fixture(scope="module")
def costs() -> Iterator[dict[str, tuple[int, int, int]]]:
    """Printed at the end; see it with `pytest -s`."""
    found: dict[str, tuple[int, int, int]] = {}
    yield found
    print(f"\n{'home':10}{'calls paid':>12}{'rows scored':>13}{'trainings run':>15}")
    for name, (calls, rows, trainings) in found.items():
        print(f"{name:10}{calls:>12}{rows:>13}{trainings:>15}")


def run(home: OldHome, fake: FakeOpenAI) -> tuple[int, int, int]:
    """`srt run`: the calls it paid, the rows it scored, the trainings it ran."""
    asked, known = fake.calls, replies(home)
    scored = {m.written_at for m in home.lake.manifests("student_scores")}
    with watched() as work:
        code, told = home.srt("run")
    assert code == 0, told
    calls = replies(home) - known
    assert fake.calls - asked == calls
    new = [m for m in home.lake.manifests("student_scores") if m.written_at not in scored]
    rows = sum(m.stats["candidates_scored"] for m in new)
    assert bool(rows) == bool(work.sequences)
    return calls, rows, len(work.trainings)


def replies(home: OldHome) -> int:
    """Replies on disk, sealed or not."""
    return sum(row["status"] == "ok" for row in calls_of(home))


def calls_of(home: OldHome) -> list[dict]:
    """The ledger's rows, read without the program's own lookup."""
    sealed = srt_assets.read("teacher_calls", home=home.lake.home).to_dict("records")
    known = {row["segment"] for row in sealed}
    lines = [line for path in ledger.segments(home.lake) for line in path.read_text().splitlines()]
    return sealed + [row for row in (json.loads(line[9:]) for line in lines) if row["segment"] not in known]


@pytest.mark.parametrize("name", [*FINISHED, "half"])
def test_looking_at_an_old_home_changes_nothing_in_it(name: str, tmp_path: Path) -> None:
    home = open_home(name, tmp_path)
    before = home.files()
    assert len(before) > 10
    with watched() as work:
        for words in ASKED:
            code, told = home.srt(*words)
            assert code == 0, (words, told)
        for table in ("raw_records", "teacher_calls", "candidates", "decisions", "training_runs"):
            srt_assets.read(table, home=home.lake.home)
        standings(home.settings, home.lake, home.students)
    assert home.files() == before
    assert not work.sequences and not work.trainings


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_old_home_is_fresh_and_says_what_it_said(name: str, tmp_path: Path) -> None:
    home = open_home(name, tmp_path)
    assert len(home.students) == {"demo": 1, "sharegpt": 2}[name]
    found = standings(home.settings, home.lake, home.students)
    assert [s for s in found if s.state != "fresh"] == []
    answers = home.answers()
    assert set(answers) == {"candidates", "candidate_scores", "decisions", "selected_set"}
    assert home.answers_now() == answers


@pytest.mark.parametrize("name", FINISHED)
def test_running_a_finished_old_home_costs_nothing(
    name: str, tmp_path: Path, teacher: FakeOpenAI, costs: dict[str, tuple[int, int, int]]
) -> None:
    home = open_home(name, tmp_path)
    before, manifests = home.files(), hashes(home)
    costs[name] = run(home, teacher)
    assert costs[name] == COSTS[name]
    after = home.files()
    other = {file for file in {*before, *after} if before.get(file) != after.get(file)}
    new = ("_manifest.json", "_manifest.copy.json", "_manifest.v1.json", "_version.json", "reserve")
    new_form = {file for file in other if Path(file).name in new}
    assert [file for file in other - new_form if not file.startswith(WRITTEN_AFTER_A_MOVE)] == []
    old = {file: digest for file, digest in before.items() if Path(file).name == "_manifest.json"}
    assert {file: after[file.replace("_manifest.json", "_manifest.v1.json")] for file in old} == old, "left beside"
    read_again = {"raw_rejects", "raw_alternatives", "raw_fields"}
    now = hashes(home)
    assert {t: h for t, h in now.items() if t not in read_again} == {
        t: h for t, h in manifests.items() if t not in read_again
    }
    assert home.answers_now() == home.answers()
    for path in home.lake.home.glob("checkpoints/*/*"):
        assert str(path) in {row["path"] for row in home.sql("SELECT path FROM training_runs")}
    assert run(home, teacher) == (0, 0, 0)
    assert home.files() == after


def hashes(home: OldHome) -> dict[str, str]:
    """Content hash of every finished table and partition."""
    files = sorted(home.lake.root.rglob("_manifest.json"))
    return {str(f.parent.relative_to(home.lake.root)): json.loads(f.read_text())["content_hash"] for f in files}


@pytest.mark.parametrize("name", [*FINISHED, "half"])
def test_an_old_home_lies_elsewhere_than_it_was_made(name: str, tmp_path: Path) -> None:
    home = open_home(name, tmp_path / "another place")
    for slug in home.students:
        student = checkpoints.get(home.lake, slug)
        assert not Path(student.source).exists(), "the folder it was made in is gone"
        for file in student.path.iterdir():
            assert file.resolve().is_relative_to(home.lake.home.resolve())


@pytest.mark.slow
def test_half_a_home_pays_for_the_other_half_only(
    tmp_path: Path, teacher: FakeOpenAI, costs: dict[str, tuple[int, int, int]]
) -> None:
    home = open_home("half", tmp_path)
    paid = calls_of(home)
    lacking = missing(home, paid)
    # All rows and the training: nothing of them was there yet.
    costs["half"] = run(home, teacher)
    records = len(home.sql("SELECT sample_id FROM raw_records"))
    assert costs["half"] == (lacking, 4 * records, 1)
    now = calls_of(home)
    keys = [row["call_key"] for row in now if row["status"] == "ok"]
    assert len(keys) == len(set(keys)) == len(paid) + lacking, "no call was asked again"
    texts = {row["call_key"]: row["reply"] for row in now}
    assert all(texts[row["call_key"]] == row["reply"] for row in paid), "what was paid for is what is used"
    assert not ledger.segments(home.lake), "everything is sealed"
    assert {s.state for s in standings(home.settings, home.lake, home.students)} == {"fresh"}


def test_half_a_home_is_told_apart_from_a_whole_one_without_its_teacher(tmp_path: Path) -> None:
    home = open_home("half", tmp_path)
    paid = calls_of(home)
    assert 0 < sum(row["segment"] == path.name for row in paid for path in ledger.segments(home.lake)) < len(paid)
    states = {s.asset: s.state for s in standings(home.settings, home.lake, home.students)}
    assert states.pop("raw_dataset") == "fresh" and states.pop("reflected_instructions") == "failed"
    assert set(states.values()) == {"missing"}
    code, told = home.srt("estimate")
    assert code == 0 and f"{missing(home, paid)} calls" in told
    assert replies(home) == len(paid)


def missing(home: OldHome, paid: list[dict]) -> int:
    """Calls that the ledger lacks: those of instructions, and two more a record; every reply still to come is good."""
    assert {row["purpose"] for row in paid} == {"reflect_instruction"}, "that is how far it came"
    readable = {row["sample_id"] for row in paid if "[New Instruction]" in row["reply"]}
    assert len(readable) < len(paid), "a reply waits for its correction"
    records = len(home.sql("SELECT sample_id FROM raw_records"))
    return 3 * records - len(readable)
