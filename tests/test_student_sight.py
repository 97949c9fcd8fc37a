"""`srt students show`: one record as it is scored and trained, on a terminal and as JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from student_lake import RECORDS, make_lake, settings_for
from tiny_student import make_tiny_student
from transformers import AutoTokenizer

from srt_assets.commands import doctor
from srt_assets.commands import sight as command
from srt_assets.core.errors import UserError
from srt_assets.core.hashing import sample_id
from srt_assets.core.lake import Lake
from srt_assets.core.scoring import stage as scores
from srt_assets.core.selection import decide
from srt_assets.core.students import checkpoints
from srt_assets.core.tables import PASSES
from srt_assets.core.training.sight import sight
from tests.test_student_chat import KINDS, student_with

ID = sample_id(*RECORDS[0])


def shown(lake: Lake, slug: str = "tiny", id: str | None = ID, **student: object) -> list[str]:
    out = io.StringIO()
    command.run(settings_for(**student), lake, slug, id, "table", Console(file=out, width=80, highlight=False))
    lines = out.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    return lines


@pytest.fixture
def bench(home: Path) -> Lake:
    return make_lake(home)


def test_the_tokens_are_those_that_are_scored(bench: Lake) -> None:
    settings = settings_for()
    scores.STAGE.run(settings, bench, "tiny")
    decide.STAGE.run(settings, bench, student="tiny")
    found = sight(settings, bench, "tiny", ID)
    with bench.connect() as con:
        ((candidate, reason), *_) = con.execute(
            "SELECT chosen, reason FROM decisions WHERE sample_id = ?", [ID]
        ).fetchall()
        row = con.execute(
            "SELECT * FROM student_scores WHERE sample_id = ? AND candidate = ?", [ID, candidate]
        ).to_arrow_table()
    assert (found["candidate"], found["reason"]) == (candidate, reason), "the version that the student chose"
    (row,) = row.to_pylist()
    for name in PASSES:
        assert len(found["passes"][name]["ids"]) - found["passes"][name]["start"] == row[f"n_tokens_{name}"]
    given, trained = found["passes"]["response_given_prompt"], found["training"]
    assert trained["ids"][: len(given["ids"])] == given["ids"] and trained["start"] == given["start"] - 1
    tokenizer = AutoTokenizer.from_pretrained(checkpoints.get(bench, "tiny").path)
    assert trained["ids"][len(given["ids"]) :] == [tokenizer.eos_token_id]
    assert "".join(trained["tokens"]) == tokenizer.decode(trained["ids"])


def test_where_the_losses_start_and_end_and_what_stops_it(bench: Lake, tmp_path: Path) -> None:
    source = student_with(tmp_path / "thinks", KINDS["opens a thought"][0])
    checkpoints.add(settings_for(), bench, str(source), "thinks")
    lines = shown(bench, "thinks", template="chat")
    text = "\n".join(lines)
    given = sight(settings_for(template="chat"), bench, "thinks", ID)["passes"]["response_given_prompt"]
    places = [lines.index(next(line for line in lines if line.startswith("── " + what))) for what in (
        "the loss of training starts: token",
        "the loss of scoring starts: token",
        "the loss of scoring ends: token",
        "the loss of training ends: token",
    )]  # fmt: skip
    assert places == sorted(places)
    assert lines[places[0] - 1].replace("│", "").endswith("assistant\\n")
    assert f"starts: token {given['start']}" in lines[places[1]]
    assert f"ends: token {len(given['ids']) - 1}" in lines[places[2]]
    assert lines[places[2] + 1] == "<|im_end|>"
    assert "generation stops on '<|im_end|>' (321), '</s>' (2)" in text
    assert "<think>" in " ".join(lines[2:6]) and "version original" in text


def test_as_json_nothing_is_left_out(bench: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    command.run(settings_for(), bench, "tiny", ID[:6], "json")
    assert json.loads(capsys.readouterr().out) == sight(settings_for(), bench, "tiny", ID)


def test_without_a_record_an_example_shows_the_template(home: Path) -> None:
    lake = Lake(home)
    checkpoints.add(settings_for(), lake, str(make_tiny_student(home / "source")), "tiny")
    assert shown(lake, id=None)[0] == "no record is there yet: an example"


def test_what_is_not_scored_or_not_trained_on_says_so(bench: Lake) -> None:
    text = "\n".join(shown(bench, max_length=60))
    assert "prompt_too_long" in text and "the loss of scoring" not in text
    settings = settings_for()
    settings = settings.model_copy(update={"training": settings.training.model_copy(update={"max_length": 60})})
    out = io.StringIO()
    command.run(settings, bench, "tiny", ID, "table", Console(file=out, width=80, highlight=False))
    assert "not trained on: prompt_too_long" in out.getvalue() and "the loss of scoring starts" in out.getvalue()


def test_control_characters_of_a_record_do_nothing(home: Path) -> None:
    from student_lake import four

    record = ("Name it.\x1b[31m", "", "It is \x9b2J here.\r\nAnd there.")
    lake = make_lake(home, four(record))
    text = "\n".join(shown(lake, id=None))
    assert "\x1b" not in text and "\x9b" not in text and "\\x1b" in text


@pytest.mark.parametrize("id", ["zz", "no such"])
def test_a_record_that_is_not_there(bench: Lake, id: str) -> None:
    with pytest.raises(UserError, match="no record has the sample_id"):
        shown(bench, id=id)
    with pytest.raises(UserError, match="several records begin with ''"):
        shown(bench, id="")


def test_doctor_says_how_turns_end(bench: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in (("thinks", "opens a thought"), ("plain", "chatml")):
        checkpoints.add(settings_for(), bench, str(student_with(tmp_path / name, KINDS[kind][0])), name)
    source = student_with(tmp_path / "raises", "{{ raise_exception('never') }}")
    checkpoints.add(settings_for(), bench, str(source), "raises")
    monkeypatch.setenv("SRT_HOME", str(bench.home))
    monkeypatch.setenv("SRT_STUDENT__TEMPLATE", "chat")
    found = {f.what: f.level for f in doctor.examine()}
    assert found["student plain, chat template: an answer ends with '<|im_end|>'"] == "ok"
    assert found["student tiny, chat template: an answer ends with '</s>'"] == "ok"
    assert any("student thinks: answers are scored and trained after" in w and v == "warning" for w, v in found.items())
    assert found["the chat template of the student raises cannot be used: never"] == "error"
