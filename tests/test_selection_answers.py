"""What a person gets about a selection: srt explain, srt export with its dataset card, srt report."""

import json
import re
from datetime import datetime
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from selection_lake import candidate_rows, ratios, record, score_row, small_lake, write_candidates, write_records
from selection_lake import write_scores as store_scores

from srt_assets.commands import explain as explain_command
from srt_assets.commands.export import FORMATS, export
from srt_assets.commands.report import report
from srt_assets.core.errors import UserError
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.records.forms.meaning import read_row
from srt_assets.core.records.forms.result import Pair
from srt_assets.core.records.forms.rules import Rules
from srt_assets.core.selection import decide
from srt_assets.core.selection.evidence import explain
from srt_assets.core.sql import views
from srt_assets.settings import Dataset, Project, Selection, Settings

ANSWER = '[red]bold[/red] \x1b[2J<script>alert("x")</script>'


@pytest.fixture
def decided(tmp_path: Path) -> Lake:
    """Two students over eight records, the first record's calls in the ledger, one of them tried twice."""
    lake = small_lake(tmp_path, students=("tiny", "other"))
    settings = Settings(project=Project(home=tmp_path))
    for student in ("tiny", "other"):
        decide.STAGE.run(settings, lake, student=student)
    key = record(0)["sample_id"]
    calls = [
        call(key, "reflected_instruction", "reflect_instruction", 1, "ok", reply=ANSWER, cost_usd=0.25),
        call(key, "reflected_response", "reflect_response", 1, "timeout", error="took too long"),
        call(key, "reflected_response", "reflect_response", 2, "ok", reply="fine"),
    ]
    # What wrote one of the kept rows.
    calls.append(call(key, "reflected_both", "reflect_response_of_reflected", 1, "ok"))
    for minute, one in enumerate(calls):
        one["created_at"] = datetime(2026, 1, 1, 0, minute)
    lake.commit(
        "teacher_calls", [lake.write_part("teacher_calls", calls)], fingerprint=Fingerprint.of(of="c"), code_version="1"
    )
    return lake


def call(key: str, candidate: str, purpose: str, attempt: int, status: str, **more) -> dict:
    known = {"call_key": f"call-{candidate}-{key}", "sample_id": key, "purpose": purpose, "model": "openai/t"}
    return {**known, "prompt_version": "v1", "status": status, "attempt": attempt, "prompt_tokens": 7, **more}


# -- explain


def test_explain_has_everything_behind_a_verdict(decided: Lake) -> None:
    found = explain(decided, record(0)["sample_id"], "tiny")
    assert found["record"]["instruction"] == "Do thing 0" and found["record"]["source_index"] == 0
    names = ["original", "reflected_instruction", "reflected_response", "reflected_both"]
    assert [c["candidate"] for c in found["candidates"]] == names
    assert [(c["attempt"], c["status"], c["cost_usd"]) for c in found["teacher_calls"]] == [
        (1, "ok", 0.25),
        (1, "timeout", None),
        (2, "ok", None),
        (1, "ok", None),
    ]
    assert found["teacher_calls"][0]["reply"] == ANSWER
    [one] = found["students"]
    assert [s["candidate"] for s in one["scores"]] == names
    assert one["scores"][1]["loss_response_given_prompt"] == pytest.approx(1.8)
    assert one["scores"][1]["log_r_ifd"] == pytest.approx(-0.3)
    first, second = one["comparisons"]
    assert (first["challenger"], first["defender"], first["winner"]) == (
        "reflected_instruction",
        "original",
        "reflected_instruction",
    )
    assert first["margin"] == pytest.approx(0.3)  # log IFD -0.2 against -0.5
    assert (second["challenger"], second["defender"], second["by"], second["result"]) == (
        "reflected_both",
        "reflected_instruction",
        "r_ifd",
        "wins",
    )
    assert second["margin"] == pytest.approx(0.2)
    assert (one["verdict"]["chosen"], one["verdict"]["kept"]) == ("reflected_both", True)
    assert {p["policy"]: p["chosen"] for p in one["policies"]}["original"] == "original"


def test_explain_and_the_lineage_view_agree(decided: Lake) -> None:
    con = views.connect(decided)
    rows = con.sql("SELECT * FROM record_lineage").to_arrow_table().to_pylist()
    con.close()
    assert len(rows) == 8 * 4 * 2
    for number in range(8):
        found = explain(decided, record(number)["sample_id"])
        assert [s["student"] for s in found["students"]] == ["other", "tiny"]
        for one in found["students"]:
            mine = {
                r["candidate"]: r
                for r in rows
                if r["student"] == one["student"] and r["sample_id"] == found["record"]["sample_id"]
            }
            for score in one["scores"]:
                row = mine[score["candidate"]]
                for column in ("loss_response", "loss_instruction_given_response", "log_ifd", "r_ifd_ppl"):
                    assert row[column] == score[column]
                assert row["score_status"] == score["status"]
                assert (row["reason"], row["margin_1"]) == (one["verdict"]["reason"], one["verdict"]["margin_1"])
                assert row["is_chosen"] == (one["verdict"]["chosen"] == score["candidate"])
    of_first = {r["candidate"]: r for r in rows if r["sample_id"] == record(0)["sample_id"] and r["student"] == "tiny"}
    assert of_first["reflected_instruction"]["reply"] == ANSWER
    # Of two attempts the one that answered.
    assert (of_first["reflected_response"]["reply"], of_first["reflected_response"]["call_attempts"]) == ("fine", 2)


def test_explain_on_a_terminal_shows_texts_as_they_are_and_runs_none(decided: Lake) -> None:
    out = StringIO()
    key = record(0)["sample_id"]
    explain_command.run(decided, key[:8], "tiny", "table", Console(file=out, width=160, highlight=False))
    text = out.getvalue()
    assert "[red]bold[/red] \\x1b[2J<script>" in text and "\x1b" not in text
    for word in (
        "Do thing 0",
        "openai/t",
        "timeout",
        "1.8000",
        "margin +0.3",
        "reflected_both won",
        "the other policies",
    ):
        assert word in text, word


def test_explain_as_json_round_trips(decided: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    explain_command.run(decided, record(0)["sample_id"], None, "json")
    found = json.loads(capsys.readouterr().out)
    assert found["teacher_calls"][0]["reply"] == ANSWER and len(found["students"]) == 2


def test_explain_of_an_unscored_record_shows_what_there_is(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    write_records(lake, [record(0)])
    write_candidates(lake, candidate_rows(record(0)))
    found = explain(lake, record(0)["sample_id"])
    assert (len(found["candidates"]), found["students"]) == (4, [])


def test_explain_says_what_is_wrong_with_the_question(decided: Lake) -> None:
    with pytest.raises(UserError, match="no record has the sample_id 'zz'"):
        explain(decided, "zz")
    with pytest.raises(UserError, match="did you mean tiny"):
        explain(decided, record(0)["sample_id"], "tinny")
    ids = sorted(record(i)["sample_id"] for i in range(8))
    assert len({i[0] for i in ids}) < 8, "two ids begin alike"
    shared = next(i[0] for i in ids if sum(j[0] == i[0] for j in ids) > 1)
    with pytest.raises(UserError, match="several records begin with"):
        explain(decided, shared)


# -- export


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_an_export_reads_back_as_the_selected_pairs(decided: Lake, tmp_path: Path, format: str, ending: str) -> None:
    out = tmp_path / "new" / f"set{ending}"
    settings = Settings(project=Project(home=tmp_path))
    assert export(settings, decided, "tiny", format, out) == 3
    text = out.read_text()
    rows = json.loads(text) if ending == ".json" else [json.loads(line) for line in text.splitlines()]
    con = decided.connect()
    chosen = con.execute(
        "SELECT instruction, input, response FROM selected_set WHERE student = 'tiny' ORDER BY position"
    ).fetchall()
    con.close()
    found = [read_row(row, Rules(format)) for row in rows]
    assert [read.records for read in found] == [[Pair(*row)] for row in chosen]
    again = tmp_path / f"again{ending}"
    export(settings, decided, "tiny", format, again)
    assert again.read_bytes() == out.read_bytes()


def test_an_input_is_part_of_the_prompt() -> None:
    row = {"sample_id": "s", "instruction": "Sum", "input": "1 2", "response": "3"}
    assert FORMATS["messages"](row)["messages"][0] == {"role": "user", "content": "Sum\n1 2"}
    assert FORMATS["sharegpt"](row)["conversations"][0] == {"from": "human", "value": "Sum\n1 2"}
    assert FORMATS["alpaca"](row) == {"instruction": "Sum", "input": "1 2", "output": "3"}


def test_a_folder_is_a_dataset_with_a_card(decided: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import yaml

    dataset = Dataset(name="alpaca", path=str(tmp_path / "private" / "alpaca.json"))
    out = tmp_path / "folder"
    export(Settings(project=Project(home=tmp_path), datasets=(dataset,)), decided, "tiny", "messages", out)
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 3 and loaded[0]["messages"][1]["role"] == "assistant"
    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "other" and header["size_categories"] == ["n<1K"]
    for fact in (
        "| alpaca | alpaca.json | 8 | 3 |",
        "`selective`",
        "`tiny`",
        "| openai/t | v1 | 1 |",
        "| 10 | 2 | 8 | 3 |",
    ):
        assert fact in card, fact
    assert "Licence" in card and str(tmp_path) not in card
    assert sorted(p.name for p in out.rglob("*")) == ["README.md", "data", "train.jsonl"]


def test_every_wrong_export_is_one_clear_error(decided: Lake, tmp_path: Path) -> None:
    settings = Settings(project=Project(home=tmp_path))
    there = tmp_path / "there.json"
    there.write_text("mine")
    empty = settings.model_copy(update={"selection": Selection(policy="selective", top_k=1)})
    decide.STAGE.run(empty, decided, student="other")
    decided.commit("selected_set", [], fingerprint=Fingerprint.of(of="x"), code_version="1", partition="student=other")
    for student, format, out, message in (
        ("tiny", "csv", "a.json", "unknown format 'csv'"),
        ("tinny", "alpaca", "a.json", "did you mean tiny"),
        ("tiny", "alpaca", "there.json", "exists already"),
        ("tiny", "alpaca", "a.parquet", "ends in .parquet"),
        ("other", "alpaca", "a.json", "selected set of other is empty"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            export(settings, decided, student, format, tmp_path / out)
    assert there.read_text() == "mine"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".") or p.name.startswith("a.")]


def test_a_failed_export_leaves_nothing(decided: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(row: dict) -> dict:
        raise OSError("disk")

    monkeypatch.setitem(FORMATS, "alpaca", fail)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="disk"):
        export(Settings(project=Project(home=tmp_path)), decided, "tiny", "alpaca", tmp_path / "folder")
    assert sorted(tmp_path.iterdir()) == before


# -- report


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def hostile(tmp_path: Path) -> Lake:
    """One record under a dataset and a policy's reason that try to be markup: the teacher's model name is a script."""
    lake = Lake(tmp_path)
    write_records(lake, [record(0)])
    four = candidate_rows(record(0), {"reflected_response": "<img src=x onerror=alert(1)>"})
    write_candidates(lake, four)
    # The reflected response is not ok, and the policy reflected_all rejects with its status.
    four_scores = [score_row("tiny", row, ratios(-0.5, -0.5)) for row in four]
    store_scores(lake, "tiny", four_scores)
    bad = call(record(0)["sample_id"], "x", "reflect|[link](javascript:1)", 1, "ok")
    bad["model"] = "<script>alert(1)</script>"
    lake.commit(
        "teacher_calls", [lake.write_part("teacher_calls", [bad])], fingerprint=Fingerprint.of(of="c"), code_version="1"
    )
    decide.STAGE.run(Settings(project=Project(home=tmp_path)), lake, student="tiny")
    return lake


def test_a_report_has_the_numbers_and_stands_alone(decided: Lake, tmp_path: Path) -> None:
    run = {"student": "tiny", "run": "r1", "arm": "selective", "is_active_policy": True, "n_train": 3, "n_held_out": 1}
    run |= {"eval_loss_before": 3.25, "eval_loss_after": 2.125}
    part = decided.write_part("training_runs", [run], "student=tiny")
    decided.commit(
        "training_runs", [part], fingerprint=Fingerprint.of(of="t"), code_version="1", partition="student=tiny"
    )
    for ending in (".md", ".html"):
        out = tmp_path / f"report{ending}"
        report(decided, "tiny", out)
        text = out.read_text()
        for word in (
            "instruction+response",
            "unaccounted",
            "3.25",
            "2.125",
            "openai/t",
            "response_not_reflected",
            "0.375",
        ):
            assert word in text, (ending, word)
    page = Tags()
    page.feed((tmp_path / "report.html").read_text())
    assert page.links == [] and "script" not in page.tags
    words = [w for w in page.words if w]
    assert words[words.index("10") :][:8] == ["10", "2", "8", "3", "4", "1", "0", "0.375"]


def test_a_report_escapes_what_strangers_wrote(tmp_path: Path) -> None:
    lake = hostile(tmp_path)
    report(lake, "tiny", tmp_path / "r.html")
    page = Tags()
    page.feed((tmp_path / "r.html").read_text())
    assert page.tags.isdisjoint({"script", "img", "a"}) and "<script>alert(1)</script>" in page.words
    report(lake, "tiny", tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    assert "<script" not in text and "reflect\\|\\[link](javascript:1)" in text


def test_a_wrong_report_is_one_clear_error(decided: Lake, tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("mine")
    for student, out, message in (
        ("tinny", "a.md", "did you mean tiny"),
        ("tiny", "a.pdf", "ends in .pdf"),
        ("tiny", "there.md", "exists already"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            report(decided, student, tmp_path / out)
    assert (tmp_path / "there.md").read_text() == "mine"
