"""Asked about a student: told apart are one that nobody knows and one of whom nothing was made yet."""

from pathlib import Path

import pytest
from selection_lake import record, small_lake
from student_lake import settings_for
from tiny_student import make_tiny_student

from srt_assets.commands.export import export
from srt_assets.commands.report import report
from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.selection.evidence import explain
from srt_assets.core.students import checkpoints


@pytest.fixture
def answers(tmp_path: Path):
    """The three questions about a student of a lake."""
    settings = settings_for()
    return {
        "selected_set": lambda lake, student: export(settings, lake, student, "alpaca", tmp_path / "set.json"),
        "selected_set, for the report": lambda lake, student: report(lake, student, tmp_path / "page.md"),
        "student_scores": lambda lake, student: explain(lake, record(0)["sample_id"], student),
    }


def registered(lake: Lake, source: Path, name: str) -> None:
    checkpoints.add(settings_for(), lake, str(make_tiny_student(source)), name)


@pytest.mark.parametrize("also_scored", [False, True])
def test_a_student_just_registered_is_told_what_to_run(tmp_path: Path, answers, also_scored: bool) -> None:
    lake = small_lake(tmp_path / "home", students=("other",)) if also_scored else Lake(tmp_path / "home")
    registered(lake, tmp_path / "source", "fresh")
    for name, ask in answers.items():
        with pytest.raises(UserError) as caught:
            ask(lake, "fresh")
        assert f"student fresh has no {name.partition(',')[0]} yet" in caught.value.message
        assert caught.value.remedy == "make it: srt run selected_set --student fresh"


def test_only_an_unknown_student_gets_the_nearest_name(tmp_path: Path, answers) -> None:
    lake = Lake(tmp_path / "home")
    for ask in answers.values():
        with pytest.raises(UserError, match=r"there is no student 'fres'[\s\S]*srt students add"):
            ask(lake, "fres")
    registered(lake, tmp_path / "source", "fresh")
    for ask in answers.values():
        with pytest.raises(UserError, match=r"there is no student 'fres'[\s\S]*did you mean fresh"):
            ask(lake, "fres")


def test_scored_but_not_decided(tmp_path: Path, answers) -> None:
    lake = small_lake(tmp_path / "home")
    registered(lake, tmp_path / "source", "tiny")
    with pytest.raises(UserError, match=r"tiny has no selected_set yet[\s\S]*srt run selected_set --student tiny"):
        answers["selected_set"](lake, "tiny")
    assert answers["student_scores"](lake, "tiny")["students"][0]["verdict"] is None
