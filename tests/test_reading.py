"""raw_dataset over files: fields that nobody read, answers judged worse, runs without a record, homes read before."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from srt_assets.commands import run, show
from srt_assets.core.errors import StageError, UserError
from srt_assets.core.lake import Lake
from srt_assets.core.records import again, raw
from srt_assets.core.records.forms import meaning
from srt_assets.core.records.forms.result import Read
from srt_assets.core.records.forms.rules import Rules
from srt_assets.core.status import Standing, standings
from srt_assets.defs import names
from srt_assets.defs.assets import asset_of
from srt_assets.defs.resources import LakeResource
from srt_assets.settings import Dataset, Project, Settings, Teacher

RED = {"instruction": "Name a colour.", "output": "Red."}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings_of(lake: Lake, **datasets: Any) -> Settings:
    sets = [
        Dataset(name=name, **(given if isinstance(given, dict) else {"path": str(given)}))
        for name, given in datasets.items()
    ]
    teacher = Teacher(model="openai/fake", usd_per_million_input=1, usd_per_million_output=1)
    return Settings(project=Project(home=lake.home), datasets=tuple(sets), teacher=teacher)


def ask(lake: Lake, sql: str) -> list[tuple]:
    with lake.connect() as con:
        return con.execute(sql).fetchall()


def test_a_field_that_nobody_reads_is_counted_listed_and_said(
    tmp_path: Path, lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {**RED, "mood": "blue", "source": "x"},
        {**RED, "output": "Blue.", "mood": None},
        {**RED, "output": "Tan.", "mood": 3},
    ]
    outcome = raw.STAGE.run(settings_of(lake, a=write(tmp_path / "a.jsonl", rows)), lake)
    assert ask(lake, "SELECT dataset, field, becomes, n_rows, type FROM raw_fields ORDER BY field") == [
        ("a", "mood", "unread", 2, "text"),
        ("a", "source", "unused", 1, "text"),
    ]
    assert [message for message in caplog.messages if "mood (2)" in message and "'a'" in message]
    assert outcome.stats["fields_unread"] == 1
    assert raw.STAGE.describe(lake).tables == {
        "fields_unread": [{"dataset": "a", "field": "mood", "n_rows": 2, "type": "text"}]
    }


def test_the_names_of_fields_fill_no_memory(tmp_path: Path, lake: Lake) -> None:
    rows = [{"instruction": f"Name {n}.", "output": "x", f"key {n}": 1} for n in range(900)]
    raw.STAGE.run(settings_of(lake, a=write(tmp_path / "a.jsonl", rows)), lake)
    assert ask(lake, "SELECT count(*), sum(n_rows) FROM raw_fields") == [(501, 900)]
    assert ask(lake, "SELECT n_rows FROM raw_fields WHERE field = '(further fields)'") == [(400,)]


def test_answers_judged_worse_have_a_table_and_are_no_records(tmp_path: Path, lake: Lake) -> None:
    rows = [
        {"prompt": "Name a gem.", "chosen": "Opal.", "rejected": "Oak."},
        {"prompt": "Name a gem.", "completions": ["Ash.", "Jade."], "labels": [False, True]},
        {"message_id": "t", "parent_id": None, "message_tree_id": "t", "role": "prompter", "text": "Name a tree."},
        {"message_id": "b", "parent_id": "t", "message_tree_id": "t", "role": "assistant", "text": "Ruby.", "rank": 1},
        {"message_id": "a", "parent_id": "t", "message_tree_id": "t", "role": "assistant", "text": "Elm.", "rank": 0},
    ]
    raw.STAGE.run(settings_of(lake, a=write(tmp_path / "a.jsonl", rows)), lake)
    assert ask(lake, "SELECT response FROM raw_records ORDER BY source_index") == [("Opal.",), ("Jade.",), ("Elm.",)]
    found = ask(
        lake,
        "SELECT a.source_index, kind, label, a.response, r.response FROM raw_alternatives a "
        "JOIN raw_records r USING (sample_id, source_file) ORDER BY 1",
    )
    assert found == [
        (0, "rejected", "rejected", "Oak.", "Opal."),
        (1, "completions", "labels: false", "Ash.", "Jade."),
        (3, "rank", "rank 1", "Ruby.", "Elm."),
    ]


def test_a_duplicate_names_the_dataset_it_was_seen_in(
    tmp_path: Path, lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = (
        write(tmp_path / "one.jsonl", [RED]),
        write(tmp_path / "two.jsonl", [RED, {**RED, "output": "Blue."}] * 2),
    )
    raw.STAGE.run(settings_of(lake, a=one, b=two), lake)
    details = [detail for (detail,) in ask(lake, "SELECT detail FROM raw_rejects ORDER BY source_index")]
    assert [f"of dataset a, {one}" in details[0], f"of dataset a, {one}" in details[1]] == [True, True]
    assert f"of dataset b, {two}" in details[2]
    assert "dataset 'b': 1 records from 4 rows; rejected: duplicate 3 (duplicates: 2 of dataset 'a')" in caplog.messages


def test_a_loss_of_rows_is_said_whatever_its_share(
    tmp_path: Path, lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"instruction": f"Name {n}.", "output": "x"} for n in range(200)] + [{"instruction": "Name it."}]
    raw.STAGE.run(settings_of(lake, a=write(tmp_path / "a.jsonl", rows)), lake)
    assert caplog.messages == ["dataset 'a': 200 records from 201 rows; rejected: missing_response 1"]


def test_no_record_at_all_is_an_error_that_names_the_fields_and_keeps_what_was(tmp_path: Path, lake: Lake) -> None:
    file = write(tmp_path / "a.jsonl", [RED])
    raw.STAGE.run(settings_of(lake, a=file), lake)
    write(file, [{"idx": 1, "Skill": "Math", "Instruction": "Add."}] * 3)
    empty = write(tmp_path / "b.jsonl", [])
    with pytest.raises(UserError) as caught:
        raw.STAGE.run(settings_of(lake, a=file, b=empty), lake)
    told = str(caught.value)
    for word in (
        "'a' gives no record",
        "unknown_form 3",
        "idx, Skill, Instruction",
        "'b' has no rows",
        "columns = {",
    ):
        assert word in told
    assert ask(lake, "SELECT response FROM raw_records") == [("Red.",)]
    [state] = [s for s in standings(settings_of(lake, a=file, b=empty), lake, []) if s.asset == "raw_dataset"]
    assert state.state == "failed" and "unknown_form 3" in state.why


def test_the_rejects_of_a_first_run_without_a_record_can_be_looked_at(tmp_path: Path, lake: Lake) -> None:
    file = write(tmp_path / "a.jsonl", [{**RED, "label": False}])
    with pytest.raises(UserError, match="negative_label: the only answer is labelled bad") as caught:
        raw.STAGE.run(settings_of(lake, a=file), lake)
    assert "columns" not in str(caught.value)
    assert ask(lake, "SELECT reason, detail FROM raw_rejects") == [("negative_label", "label")]
    assert lake.manifest(raw.RECORDS) is None and raw.STAGE.state(settings_of(lake, a=file), lake).state == "failed"
    write(file, [RED])
    raw.STAGE.run(settings_of(lake, a=file), lake)
    assert ask(lake, "SELECT count(*) FROM raw_rejects") == [(0,)] and len(records(lake)) == 1


@pytest.mark.parametrize(
    "given",
    [
        {"columns": {"instruction": "instruction", "response": "answer"}},
        {"unwrap": "answer"},
        {"columns": {"instruction": "instruction", "response": "output", "system": "answer"}},
    ],
)
def test_a_column_of_the_settings_that_no_row_has(tmp_path: Path, lake: Lake, given: dict) -> None:
    file = str(write(tmp_path / "a.jsonl", [RED, {**RED, "output": "Tan."}]))
    with pytest.raises(UserError, match=r"(?s)no row has the column 'answer'.*instruction, output"):
        raw.STAGE.run(settings_of(lake, a={"path": file, **given}), lake)
    with pytest.raises(UserError, match="no row has the column 'answer'"):
        raw.STAGE.run(settings_of(lake, ok=file, a={"path": file, **given}), lake)


def test_a_mapping_below_another_column(tmp_path: Path, lake: Lake) -> None:
    file = str(write(tmp_path / "a.jsonl", [{"data": {"q": "Add.", "a": 3}}]))
    columns = {"instruction": "q", "response": "a"}
    outcome = raw.STAGE.run(settings_of(lake, a={"path": file, "unwrap": "data", "columns": columns}), lake)
    assert ask(lake, "SELECT instruction, response FROM raw_records") == [("Add.", "3")]
    assert outcome.stats["numbers_as_text"] == 1


def test_a_setting_that_says_nothing_leaves_what_was_read(tmp_path: Path, lake: Lake) -> None:
    file = str(write(tmp_path / "a.jsonl", [RED]))
    raw.STAGE.run(settings_of(lake, a={"path": file}), lake)
    assert raw.STAGE.run(settings_of(lake, a={"path": file, "columns": {}, "role_key": ""}), lake).cached
    assert not raw.STAGE.run(settings_of(lake, a={"path": file, "role_key": "who"}), lake).cached


# -- files that an older program has read

OLD_ROWS = [
    RED,
    {**RED, "output": "Blue.", "system": "Be sad."},
    {"prompt": "Name a gem.", "completion": "Opal."},
    {"prompt": "Name a tree.", "completion": "Elm."},
]


@pytest.fixture
def old(tmp_path: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home whose files were read by a program that knew one form, dropped system prompts, and had two tables."""
    settings = settings_of(lake, a=write(tmp_path / "a.jsonl", OLD_ROWS))

    def as_then(row: Any, rules: Rules) -> Read:
        texts = {name: row[name] for name in ("instruction", "output") if name in row}
        return read(texts, rules)

    read = meaning.read_row
    with monkeypatch.context() as patch:
        patch.setattr(meaning, "read_row", as_then)
        patch.setattr(raw.RawDataset, "version", "1")
        patch.setattr(raw.RawDataset, "tables", (raw.RECORDS, raw.REJECTS))
        raw.STAGE.run(settings, lake)
    assert len(records(lake)) == 2 and lake.manifest(raw.RECORDS).code_version == "1"
    return settings


def records(lake: Lake) -> dict[str, str]:
    return {response: sample_id for sample_id, response in ask(lake, "SELECT sample_id, response FROM raw_records")}


def test_an_unattended_run_leaves_what_an_older_program_read(old: Settings, lake: Lake) -> None:
    before = lake.manifest(raw.RECORDS)
    outcome = raw.STAGE.run(old, lake, attended=False)
    assert outcome.cached and "read by an older program (version)" in outcome.note
    assert lake.manifest(raw.RECORDS) == before
    state = raw.STAGE.state(old, lake)
    assert state.state == "fresh" and "srt estimate" in state.why


def test_an_unattended_run_that_would_have_to_read_again_fails_and_says_who_can(
    old: Settings, lake: Lake, tmp_path: Path
) -> None:
    write(tmp_path / "a.jsonl", [*OLD_ROWS, {**RED, "output": "Green."}])
    assert raw.STAGE.state(old, lake).state == "changed"
    with pytest.raises(StageError, match="an older program, and its inputs have changed since"):
        raw.STAGE.run(old, lake, attended=False)
    assert len(records(lake)) == 2
    raw.STAGE.run(old, lake)
    assert set(records(lake)) == {"Red.", "Opal.", "Elm.", "Green."}
    write(tmp_path / "a.jsonl", OLD_ROWS)
    assert not raw.STAGE.run(old, lake, attended=False).cached, "once a person has read, the night reads too"


def test_a_person_reads_again_and_what_is_the_same_keeps_its_id(old: Settings, lake: Lake) -> None:
    before = records(lake)
    outcome = raw.STAGE.run(old, lake)
    now = records(lake)
    assert not outcome.cached and set(now) == {"Red.", "Opal.", "Elm."} and now["Red."] == before["Red."]
    assert ask(lake, "SELECT reason FROM raw_rejects") == [("system_prompt",)]
    assert raw.STAGE.state(old, lake).why == "" and raw.STAGE.run(old, lake).cached


def test_an_estimate_counts_and_prices_what_would_change_and_status_remembers_it(
    old: Settings, lake: Lake, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in lake.root.rglob("*") if path.is_file()}
    show.status(old, lake, [])
    assert "srt estimate counts and prices" in capsys.readouterr().out
    show.estimate_again(old, lake)
    told = capsys.readouterr().out
    # Two records less, three more: each needs three calls.
    assert (
        told.startswith("9 calls")
        and "2 records would be added and 1 removed, 3 more teacher calls" in told
        and "USD" in told
    )
    assert {path: path.read_bytes() for path in lake.root.rglob("*") if path.is_file()} == before
    monkeypatch.setattr(raw, "sources", None)  # status reads no data
    show.status(old, lake, [])
    assert (
        "raw_dataset, read again: 2 records would be added and 1 removed, 3 more teacher calls"
        in capsys.readouterr().out
    )
    assert again.is_due(old, lake) and not (lake.home / "lake" / "raw_fields").exists()


def test_after_reading_again_there_is_nothing_more_to_say(
    old: Settings, lake: Lake, capsys: pytest.CaptureFixture
) -> None:
    show.estimate_again(old, lake)
    raw.STAGE.run(old, lake)
    capsys.readouterr()
    show.status(old, lake, [])
    assert "read again" not in capsys.readouterr().out and not again.is_due(old, lake)


def test_dagster_reads_again_only_for_a_command(old: Settings, lake: Lake) -> None:
    def run(**tags: str) -> set[str]:
        resources = {"lake": LakeResource(old)}
        assert dg.materialize([asset_of(raw.STAGE)], resources=resources, tags=tags).success
        return set(records(lake))

    assert run() == run(**{"dagster/schedule_name": "nightly"}) == {"Red.", "Blue."}
    assert run(**{names.TAG_COMMAND: "srt run"}) == {"Red.", "Opal.", "Elm."}


def test_a_command_has_something_to_do_where_an_older_program_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        Standing("raw_dataset", None, "fresh", "read by an older program"),
        Standing("paid", None, "fresh", "note"),
    ]
    for name, answer in (("standings", found), ("is_recorded", True), ("has_passed", True)):
        monkeypatch.setattr(run, name, lambda *_, answer=answer: answer)
    assert not run._nothing_to_do(None, None, None, None, [])  # type: ignore[arg-type]
    found[0] = Standing("raw_dataset", None, "fresh")
    assert run._nothing_to_do(None, None, None, None, [])  # type: ignore[arg-type]
