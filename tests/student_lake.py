"""Candidates in a lake without a teacher, for tests of the student's side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiny_student import make_tiny_student

from srt_assets.core.hashing import Fingerprint, content_key, sample_id
from srt_assets.core.lake import Lake
from srt_assets.core.students import checkpoints
from srt_assets.settings import Settings

FIRST = "asset=reflected_instructions"
SECOND = "asset=reflected_responses"
RECORDS = [
    (f"Name {n} fruits that start with {letter}.", "as a list" if n % 3 == 0 else "", f"{letter}{'apple, ' * n}plum.")
    for n, letter in enumerate("abcdefghij", start=1)
]


def settings_for(**student: object) -> Settings:
    """Settings whose student section is this, on the CPU unless told otherwise."""
    return Settings.model_validate({"student": {"devices": "cpu", **student}})


def four(record: tuple[str, str, str], bad: Sequence[str] = ()) -> list[dict]:
    """The four candidate rows of a record; those named in `bad` have no usable texts."""
    instruction, given, response = record
    texts = {
        "original": record,
        "reflected_instruction": (f"{instruction} Explain why.", "", f"{response} Because."),
        "reflected_response": (instruction, given, f"Certainly: {response}"),
        "reflected_both": (f"{instruction} Explain why.", "", f"Certainly: {response} Because."),
    }
    return [
        {
            "sample_id": sample_id(*record),
            "dataset": "test",
            "candidate": name,
            "instruction": None if name in bad else t[0],
            "input": None if name in bad else t[1],
            "response": None if name in bad else t[2],
            "status": "no_markers" if name in bad else "ok",
            "content_key": None if name in bad else content_key(*t),
        }
        for name, t in texts.items()
    ]


def put_candidates(lake: Lake, rows: list[dict]) -> None:
    """Make these rows the lake's candidates, in the two slices the teacher side writes."""
    for partition, names in (
        (FIRST, ("original", "reflected_instruction")),
        (SECOND, ("reflected_response", "reflected_both")),
    ):
        mine = [row for row in rows if row["candidate"] in names]
        part = lake.write_part("candidates", mine, partition)
        lake.commit("candidates", [part], fingerprint=Fingerprint.of(of=part), code_version="test", partition=partition)


def make_lake(
    home: Path, rows: list[dict] | None = None, settings: Settings | None = None, source: Path | None = None, **student
) -> Lake:
    """A lake with candidates and a tiny student registered as `tiny`."""
    lake = Lake(home)
    put_candidates(lake, [row for r in RECORDS for row in four(r)] if rows is None else rows)
    source = make_tiny_student(source or home / "source", **student)
    checkpoints.add(settings or settings_for(), lake, str(source), "tiny")
    return lake


def scores_of(lake: Lake) -> dict[tuple[str, str], dict]:
    """The rows of student_scores by sample and candidate."""
    con = lake.connect()
    try:
        rows = con.execute("SELECT * FROM student_scores").to_arrow_table().to_pylist()
    finally:
        con.close()
    return {(row["sample_id"], row["candidate"]): row for row in rows}
