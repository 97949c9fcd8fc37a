"""`srt preview`: it says of rows what a run would make of them, writes nothing, and shows text of strangers as text."""

import json
import tomllib
from pathlib import Path

import pytest
from student_lake import make_lake, settings_for

from srt_assets.commands import preview as command
from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.records import raw
from srt_assets.core.records.preview import preview
from srt_assets.settings import Dataset, Project, Settings

ROWS = [
    {"instruction": "Name a knot.", "output": "Bowline.", "source": "a book", "mood": "calm"},
    {"messages": [{"role": "user", "content": "Name a sail."}, {"role": "assistant", "content": "Jib."}]},
    {"instruction": "Name a fish.", "output": "Cod.", "rejected": "Whale."},
    {"instruction": "Name a moth.", "output": ""},
    {"prompt": "Is 51 prime?", "completion": "Yes.", "label": False},
    {"instruction": "Name a bird.", "output": "Wren.", "system": "Answer in rhyme."},
    {"poem": "\x1b[31mred"},
]


def written(tmp_path: Path, rows: list[dict]) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_it_says_what_a_run_then_makes(tmp_path: Path) -> None:
    dataset = Dataset(name="mine", path=str(written(tmp_path, ROWS)))
    settings = Settings(project=Project(home=tmp_path / "home"), datasets=(dataset,))
    lake = Lake(settings.home)
    found = preview(lake, dataset)
    raw.STAGE.run(settings, lake)
    with lake.connect() as con:
        reasons = dict(con.execute("SELECT reason, count(*) FROM raw_rejects GROUP BY 1").fetchall())
        texts = con.execute("SELECT instruction, input, response FROM raw_records ORDER BY source_index").fetchall()
        worse = con.execute("SELECT response FROM raw_alternatives").fetchall()
        unread = con.execute("SELECT field FROM raw_fields WHERE becomes = 'unread'").fetchall()
    assert dict(found.reasons) == reasons
    assert [tuple(pair) for _, _, pair in found.records] == texts
    assert found.n_records == 3 and found.n_alternatives == len(worse) == 1
    assert {name for name, one in found.fields.items() if "not read" in one.becomes} == {name for (name,) in unread}
    assert found.fields["mood"].becomes == {"not read": 1} and found.fields["source"].becomes == {"not used": 1}
    assert found.fields["instruction"].rows == 4 and found.fields["system"].becomes == {"in rejected rows": 1}
    assert {reason: one.place.index for reason, one in found.examples.items()} == {
        "empty_response": 3,
        "negative_label": 4,
        "system_prompt": 5,
        "unknown_form": 6,
    }


def test_it_reads_no_more_rows_than_it_is_told(tmp_path: Path) -> None:
    dataset = Dataset(name="mine", path=str(written(tmp_path, ROWS)))
    lake = Lake(tmp_path / "home")
    assert not preview(lake, dataset, 2).whole and preview(lake, dataset, 2).rows == 2
    assert preview(lake, dataset, len(ROWS)).whole and preview(lake, dataset, 0).rows == len(ROWS)


def test_unreadable_rows_are_shown_also_where_a_run_would_end(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS[:2])
    path.write_text(path.read_text() + "{broken\n" * 12)
    found = preview(Lake(tmp_path / "home"), Dataset(name="mine", path=str(path)))
    assert found.is_refused and found.reasons == {"bad_json": 12} and found.n_records == 2
    assert "broken" in found.examples["bad_json"].row


def shown(capsys: pytest.CaptureFixture[str], settings: Settings, lake: Lake, dataset: Dataset, format: str) -> str:
    command.run(settings, lake, dataset, 0, format)
    return capsys.readouterr().out


def test_what_is_printed_makes_no_home_and_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"columns": {"instruction": 'a "b"', "response": "poem"}, "multi_turn": "first_turn", "format": ""}
    rows = [{'a "b"': "Sing.", "poem": "\x1b[31mRed [bold]roses[/bold]."}]
    settings = Settings(project=Project(home=tmp_path / "home"))
    dataset = command.dataset_of(settings, str(written(tmp_path, rows)), options)
    told = shown(capsys, settings, Lake(settings.home), dataset, "table")
    assert "Red [bold]roses[/bold]." in told and "\x1b" not in told and "1 record " in told
    block = tomllib.loads(told[told.index("[[datasets]]") :])["datasets"][0]
    assert Dataset(**block) == dataset
    assert not settings.home.exists()


def test_a_table_of_thousands_of_columns_fits_a_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**{f"c{n}": 1 for n in range(600)}, "instruction": "Sing.", "output": "La."}]
    settings = Settings(project=Project(home=tmp_path / "home"))
    dataset = Dataset(name="mine", path=str(written(tmp_path, rows)))
    told = shown(capsys, settings, Lake(settings.home), dataset, "table")
    assert len(told.splitlines()) < 80 and " instruction " in told and "more fields" in told


def test_the_path_in_the_block_is_one_that_srt_toml_can_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srt.toml").write_text("")
    (tmp_path / "below").mkdir()
    monkeypatch.delenv("SRT_SETTINGS", raising=False)
    path = written(tmp_path, ROWS)
    monkeypatch.chdir(tmp_path)
    assert command.dataset_of(Settings(), path.name, {}).path == path.name
    monkeypatch.chdir(tmp_path / "below")
    assert command.dataset_of(Settings(), f"../{path.name}", {}).path == str(path.resolve())


def test_a_dataset_of_the_settings_is_named_and_its_settings_hold(tmp_path: Path) -> None:
    known = Dataset(name="known", path=str(tmp_path / "x.jsonl"), multi_turn="first_turn")
    settings = Settings(datasets=(known,))
    assert command.dataset_of(settings, "known", {"format": ""}) == known
    assert command.dataset_of(settings, "org/some-set", {}).hf == "org/some-set"
    for source in ("x.jsonl", "known"):
        with pytest.raises(UserError, match="srt preview"):
            command.dataset_of(settings, source, {"format": "none such"})
        with pytest.raises(UserError, match="srt preview"):
            command.dataset_of(settings, source, {"multi_turn": "none such"})
    with pytest.raises(UserError, match="COLUMN=FIELD"):
        command.columns_of(["instruction"])


def test_lengths_are_those_that_are_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, lake = settings_for(), make_lake(tmp_path / "home")
    dataset = Dataset(name="mine", path=str(written(tmp_path, ROWS[:2])))
    told = json.loads(shown(capsys, settings, lake, dataset, "json"))
    (one,) = told["token_lengths"]
    assert one["student"] == "tiny" and one["trained"] == one["scored_whole"] == 1.0
    assert 0 < one["median"] <= one["p95"] <= one["longest"]
    long = [{"instruction": "Sing.", "output": "la " * 20_000}, ROWS[0]]
    told = json.loads(shown(capsys, settings, lake, Dataset(name="m", path=str(written(tmp_path, long))), "json"))
    assert told["token_lengths"][0]["trained"] == 0.5
