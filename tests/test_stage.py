"""What holds for every stage: the prologue, failures, renewal; and that one more is a file and a line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from srt_assets.core import stages
from srt_assets.core.errors import UserError
from srt_assets.core.hashing import Fingerprint, digest
from srt_assets.core.lake import FAILURE, Lake
from srt_assets.core.outcome import Description, Made
from srt_assets.core.stage import Stage, Work
from srt_assets.core.status import standings
from srt_assets.core.tables import TABLES
from srt_assets.settings import Project, Settings, Student

ROOT = Path(__file__).parent.parent

TOY = '''"""A stage nobody needs: the lengths of the records."""

from srt_assets.core.hashing import Fingerprint
from srt_assets.core.outcome import Description, Made
from srt_assets.core.stage import Stage
from srt_assets.core.tables import Column, Table

LENGTHS = Table(
    "record_lengths",
    "How long each record is.",
    (Column("sample_id", "VARCHAR", "id of the record"), Column("characters", "BIGINT", "length of its response")),
    key=("sample_id",),
)


class RecordLengths(Stage):
    """How long the responses are."""

    asset = "record_lengths"
    tables = ("record_lengths",)
    declares = (LENGTHS,)
    version = "1"
    needs = ("raw_dataset",)
    group = "toys"
    kinds = frozenset({"parquet"})

    def wanted(self, settings, lake, student=""):
        records = lake.manifest("raw_records")
        return Fingerprint.of(version=self.version, records=records.content_hash if records else None)

    def make(self, work):
        with work.lake.connect() as con:
            sql = "SELECT sample_id, length(response) AS characters FROM raw_records"
            return Made({"record_lengths": [work.lake.sink_part(con, sql, "record_lengths")]}, {"measured": 1})

    def describe(self, lake, student=""):
        return Description({"rows": lake.manifest("record_lengths").rows})


STAGE = RecordLengths()
'''


class Paid(Stage):
    """A stage that costs money: one row, made of a setting and of what the program is."""

    asset = "paid"
    tables = ("raw_records", "raw_rejects")
    version = "1"
    group = "toys"
    kinds = frozenset({"parquet"})
    costs_money = True
    facts_of_program = frozenset({"version", "prompts"})
    prompts = "a"
    made = 0
    fails: Exception | None = None

    def wanted(self, settings: Settings, lake: Lake, student: str = "") -> Fingerprint:
        return Fingerprint.of(version=self.version, prompts=self.prompts, template=settings.student.template)

    def make(self, work: Work) -> Made:
        if self.fails:
            raise self.fails
        self.made += 1
        row = {"sample_id": str(self.made), "dataset": "d"}
        return Made({"raw_records": [work.lake.write_part("raw_records", [row])], "raw_rejects": []}, {"made": 1})

    def describe(self, lake: Lake, student: str = "") -> Description:
        return Description({})


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(project=Project(home=home))


def with_template(settings: Settings, template: str) -> Settings:
    return settings.model_copy(update={"student": Student(template=template)})


def test_a_stage_is_made_once_and_again_when_its_inputs_change(settings: Settings, lake: Lake) -> None:
    stage = Paid()
    assert not stage.run(settings, lake).cached
    assert stage.run(settings, lake).cached and stage.made == 1
    assert not stage.run(with_template(settings, "alpaca"), lake).cached and stage.made == 2
    assert stage.state(settings, lake).why == "template"


def test_a_newer_program_alone_never_pays(settings: Settings, lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    stage = Paid()
    stage.run(settings, lake)
    stage.prompts = "b"
    outcome = stage.run(settings, lake)
    assert outcome.cached and stage.made == 1
    assert "older program (prompts)" in outcome.note and "srt run paid --renew" in outcome.note
    assert "older program (prompts)" in caplog.text
    state = stage.state(settings, lake)
    assert state.state == "fresh" and state.why == outcome.note
    # A fact that this program is the first to know does not come from the settings.
    stage.wanted = lambda *_: Fingerprint.of(version="1", prompts="a", template="vicuna", news=1)  # type: ignore[method-assign]
    assert stage.run(settings, lake).cached
    del stage.wanted  # type: ignore[attr-defined]
    assert not stage.run(with_template(settings, "alpaca"), lake).cached, "the settings changed as well"


def test_renewing_is_for_those_who_ask_for_it(settings: Settings, lake: Lake) -> None:
    stage = Paid()
    stage.run(settings, lake)
    stage.prompts = "b"
    assert not stage.run(settings, lake, renew=True).cached and stage.made == 2
    assert stage.run(settings, lake).note == ""


def test_a_stage_that_costs_nothing_is_made_again_by_a_newer_program(settings: Settings, lake: Lake) -> None:
    stage = Paid()
    stage.costs_money = False  # type: ignore[misc]
    stage.run(settings, lake)
    stage.prompts = "b"
    assert not stage.run(settings, lake).cached


def test_a_failure_is_forgotten_when_somebody_tries_again(settings: Settings, lake: Lake) -> None:
    stage = Paid()
    stage.fails = UserError("the key is wrong", "correct it")
    with pytest.raises(UserError):
        stage.run(settings, lake)
    assert stage.state(settings, lake) == stage.state(settings, lake)
    assert stage.state(settings, lake).state == "failed" and stage.state(settings, lake).why == "the key is wrong"
    # A corrected setting asks for something else, which has not failed yet.
    assert stage.state(with_template(settings, "alpaca"), lake).state == "missing"
    # A newer program wants the same thing, and so does one that cannot know what the older one wanted.
    stage.prompts = "b"
    assert stage.state(settings, lake).state == "failed"
    note = lake.directory("raw_records") / FAILURE
    note.write_text(json.dumps({"fingerprint": "of then", "message": "the key is wrong", "at": "2026-01-01"}))
    assert stage.state(settings, lake).state == "failed"
    # A setting that is no part of the result was corrected, and the run then stopped: nothing failed.
    stage.fails = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        stage.run(settings, lake)
    assert stage.state(settings, lake).state == "missing"


def test_a_failure_that_cannot_be_written_down_is_still_the_one_that_is_raised(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    stage = Paid()
    stage.fails = UserError("the key is wrong", "correct it")
    monkeypatch.setattr(Lake, "record_failure", full)
    with pytest.raises(UserError, match="the key is wrong"):
        stage.run(settings, lake)
    assert "No space left" in caplog.text


def test_every_table_has_a_stage_and_every_stage_its_tables() -> None:
    assert all(stages.maker(table) for table in TABLES)
    for stage in stages.STAGES:
        assert set(stage.tables) | set(stage.feeds) <= set(TABLES)
        assert stage.__doc__ and stage.version and stage.group and stage.kinds
        assert set(stage.needs) <= {s.asset for s in stages.STAGES[: stages.STAGES.index(stage)]}, "in order"


def test_a_fingerprint_is_no_text_and_remembers_its_facts() -> None:
    one, other = Fingerprint.of(a=1, b=[1, 2]), Fingerprint.of(b=(1, 2), a=1)
    assert one == other and not isinstance(one, str) and one.digest == digest(a=1, b=[1, 2])
    assert one.changed_since({"a": 2, "c": 3}) == {"a", "b", "c"}
    with pytest.raises(TypeError):
        digest(a={1, 2})


def test_states_come_from_the_list_of_stages(settings: Settings, lake: Lake) -> None:
    found = standings(settings, lake, ["tiny"])
    assert [s.asset for s in found] == [stage.asset for stage in stages.STAGES]


@pytest.mark.slow
def test_one_more_stage_is_one_file_and_one_line(tmp_path: Path) -> None:
    for name in ("srt_assets", "dbt_like_sql"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "srt_assets" / "core" / "records" / "lengths.py").write_text(TOY)
    listed = tmp_path / "srt_assets" / "core" / "stages.py"
    text = listed.read_text()
    # The import that goes with the line is the line's.
    listed.write_text(
        text.replace("import raw\n", "import lengths, raw\n").replace(
            "    raw.STAGE,\n", "    raw.STAGE,\n    lengths.STAGE,\n"
        )
    )
    (tmp_path / "data.json").write_text(json.dumps([{"instruction": "Name a tree.", "output": "An oak."}]))
    (tmp_path / "srt.toml").write_text('[[datasets]]\nname = "d"\npath = "data.json"\n')
    (tmp_path / "dbt_like_sql" / "models" / "longest.sql").write_text(
        "-- The longest record.\nSELECT max(characters) AS characters FROM {{ source('lake', 'record_lengths') }}\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"} | {"PYTHONPATH": str(tmp_path)}

    def srt(*words: str) -> str:
        command = [sys.executable, "-c", "from srt_assets.cli import main; main()", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    srt("run", "record_lengths")
    assert json.loads(srt("sql", "FROM longest", "--format", "json")) == [{"characters": 7}]
    status = srt("status").splitlines()
    assert any("record_lengths" in line and "fresh" in line for line in status)
    graph = (
        "from srt_assets.definitions import defs; g = defs.resolve_asset_graph(); import dagster as dg; "
        "print([k.to_user_string() for k in g.get(dg.AssetKey('longest')).parent_keys], "
        "[k.to_user_string() for k in g.get(dg.AssetKey('record_lengths')).parent_keys])"
    )
    done = subprocess.run([sys.executable, "-c", graph], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "['record_lengths'] ['raw_dataset']", done.stderr
