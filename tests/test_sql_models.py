"""The loader of dbt_like_sql, its assets with column lineage, its tests as checks."""

import shutil
from pathlib import Path

import dagster as dg
import pytest
from selection_lake import small_lake

from srt_assets.commands import doctor, show
from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.selection import decide
from srt_assets.core.sql import catalog, faults, models, query, views
from srt_assets.definitions import build_defs
from srt_assets.defs import names, sql_models
from srt_assets.defs.assets import asset_of
from srt_assets.defs.resources import LakeResource
from srt_assets.settings import Project, Settings


def folder(tmp_path: Path, **files: str) -> Path:
    (tmp_path / "models").mkdir()
    for name, text in files.items():
        (tmp_path / "models" / f"{name}.sql").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "SELECT\n{{ config(x=1) }} 1"}, "a.sql:2: {{ config(x=1) }} is not supported"),
        ({"a": "{% if x %}SELECT 1{% endif %}"}, "a.sql:1: {% is not supported"),
        ({"a": "-- x\nSELECT * FROM {{ source('other', 'x') }}"}, "a.sql:2:"),
        ({"abc": "SELECT 1", "b": "SELECT 1\nFROM {{ ref('abd') }}"}, "did you mean abc?"),
        ({"a": "SELECT * FROM {{ source('lake', 'decision') }}"}, "did you mean decisions?"),
        (
            {"a": "SELECT * FROM {{ ref('b') }}", "b": "SELECT * FROM {{ ref('a') }}"},
            "a.sql: the models refer to each other in a circle: a -> b -> a",
        ),
        ({"a": "SELECT 1;"}, "without a semicolon"),
        ({"a": "-- nothing"}, "no SQL"),
        ({"My view": "SELECT 1"}, "'My view' is no name for a view"),
        ({"raw_records": "SELECT 1"}, "there is a table named raw_records already"),
        ({"srt_meta": "SELECT 1"}, "there is a table named srt_meta already"),
    ],
)
def test_what_is_not_the_subset_is_an_error_with_its_place(tmp_path, files, message):
    project = models.load(folder(tmp_path, **files))
    assert any(message in str(error) for error in (*project.unusable, *project.broken.values()))


def test_a_file_in_another_encoding_is_named_and_a_byte_order_mark_is_none_of_the_text(tmp_path):
    root = folder(tmp_path, a="SELECT 1 AS x")
    (root / "models" / "a.sql").write_bytes(b"\xef\xbb\xbf-- Words.\nSELECT 1 AS x")
    assert models.load(root).models["a"].description == "Words."
    (root / "models" / "a.sql").write_bytes("-- Words.\n-- gr\xfcn\nSELECT 1 AS x".encode("latin-1"))
    models._load.cache_clear()
    assert "a.sql:2: not UTF-8" in str(models.load(root).broken["a"])


def test_a_second_statement_is_not_run(tmp_path):
    model = models.load(folder(tmp_path, a="SELECT 1 AS x; DROP VIEW decisions")).models["a"]
    con = small_lake(tmp_path / "home").connect()
    with pytest.raises(UserError, match=r"a\.sql: 2 statements"):
        models.create_view(con, model)
    assert con.execute("SELECT count(*) FROM decisions").fetchall() == [(0,)]
    con.close()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("-- What must hold.", "broken.sql: the test names no asset"),
        ("-- @asset: selected_sett", "did you mean selected_set"),
        ("-- @asset: selected_set\n-- @severity: warning", "@severity is 'warning'"),
    ],
)
def test_a_check_of_ones_own_says_what_it_lacks(tmp_path, monkeypatch, header, message):
    root = folder(tmp_path, a="SELECT 1 AS x")
    (root / "tests").mkdir()
    (root / "tests" / "broken.sql").write_text(f"{header}\nSELECT 1 AS x")
    monkeypatch.setattr(models, "folder", lambda: root)
    assert not sql_models.checks()
    assert message in "".join(map(str, faults.faults()))


def test_order_description_and_facts(tmp_path):
    root = folder(
        tmp_path,
        a="SELECT * FROM {{ ref('z') }}",
        z="-- Two\n-- lines.\n-- @grain: id\n-- @column id: the id\n"
        'SELECT 1 AS id FROM {{ source("lake", "students") }}',
    )
    project = models.load(root)
    assert list(project.models) == ["z", "a"]
    z = project.models["z"]
    assert (z.description, z.facts, z.columns) == ("Two lines.", {"grain": "id"}, {"id": "the id"})
    assert z.sql() == 'SELECT 1 AS id FROM "students"'


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (
            "-- Words.\n-- @grain: x\nSELECT sample_id,\n    nonsense\nFROM {{ source('lake', 'decisions') }}",
            "a.sql:4: .*nonsense",
        ),
        ("-- Words.\nSELECT 1\nFROM FROM x", "a.sql:3: .*syntax error"),
        ("SELECT no_such_function(1) AS x", "a.sql:1: .*no_such_function"),
    ],
)
def test_wrong_sql_names_file_and_line(tmp_path, sql, message):
    model = models.load(folder(tmp_path, a=sql)).models["a"]
    con = small_lake(tmp_path / "home").connect()
    with pytest.raises(UserError, match=message):
        models.create_view(con, model)
    con.close()


def test_a_wrong_rule_stops_with_its_place_before_anything_is_computed(tmp_path, monkeypatch):
    lake = small_lake(tmp_path / "home")
    copy = tmp_path / "sql"
    shutil.copytree(models.folder(), copy)
    monkeypatch.setattr(models, "folder", lambda: copy)
    rule = copy / "models" / "marts" / "decisions.sql"
    lines = rule.read_text().splitlines()
    line = next(i for i, text in enumerate(lines, start=1) if "END AS margin_2" in text)
    lines[line - 1] = lines[line - 1].replace("END AS margin_2", "END + nonsense AS margin_2")
    rule.write_text("\n".join(lines))
    models._load.cache_clear()
    with pytest.raises(UserError, match=rf"decisions.sql:{line}: .*nonsense"):
        decide.STAGE.run(Settings(project=Project(home=lake.home)), lake, student="tiny")
    assert lake.manifest("policies", "student=tiny") is None, "nothing was computed"
    models._load.cache_clear()


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """The project's SQL with a view, one that reads it, a file of a wrong name and a check that do not compile."""
    copy = tmp_path / "sql"
    shutil.copytree(models.folder(), copy)
    monkeypatch.setattr(models, "folder", lambda: copy)
    (copy / "models" / "mine.sql").write_text("SELECT 1 AS x\nFROM {{ ref('candidate_scores') }}\nWHERE nonsense")
    (copy / "models" / "yours.sql").write_text("-- @column x: x\nSELECT x FROM {{ ref('mine') }}")
    (copy / "models" / "Not a name.sql").write_text("SELECT 1 AS x")
    (copy / "tests" / "odd.sql").write_text(
        "-- @asset: raw_dataset\nSELECT nonsense FROM {{ source('lake', 'students') }}"
    )
    models._load.cache_clear()
    yield copy
    models._load.cache_clear()


NAMED = ("mine.sql:3: ", "yours.sql: it reads mine", "Not a name.sql: ", "odd.sql:2: ")


def test_what_does_not_compile_is_named_and_the_rest_is_published(tmp_path, broken, capsys):
    lake = small_lake(tmp_path / "home")
    settings = Settings(project=Project(home=lake.home))
    assert not decide.STAGE.run(settings, lake, student="tiny").cached
    catalog.publish(lake)
    with query.rows_of(lake, "SELECT count(*) FROM score_summary") as (_, rows):
        assert list(rows) == [(5,)]
    with (
        pytest.raises(UserError, match=r"there is no mine: .*mine.sql:3: .*nonsense"),
        query.rows_of(lake, "FROM mine"),
    ):
        pass
    show.status(settings, lake, [])
    said = capsys.readouterr().out
    found = "".join(f.what for f in doctor.examine())
    assert all(name in said and name in found for name in NAMED)


def test_what_does_not_compile_is_seen_in_the_ui_and_fails_no_run(tmp_path, broken):
    lake = small_lake(tmp_path / "home")
    defs = build_defs(Settings(project=Project(home=lake.home)))
    dg.Definitions.validate_loadable(defs)
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_implicit_global_asset_job_def()
        assets = [dg.AssetKey(n) for n in ("mine", "yours", "score_summary", names.PIPELINE_STATUS)]
        ran = job.execute_in_process(instance=instance, asset_selection=assets)
        assert ran.success
        events = [e.step_materialization_data.materialization for e in ran.get_asset_materialization_events()]
        made = {m.asset_key.to_user_string(): m for m in events}
        assert set(made) == {"score_summary", names.PIPELINE_STATUS}
        facts = made[names.PIPELINE_STATUS].metadata
        table = f"{facts['status'].value}\n{facts['why'].value}".replace("\\", "")  # what Markdown needs
        assert all(name in table for name in NAMED)
        noted = [e.asset_observation_data.asset_observation for e in ran.get_asset_observation_events()]
        [note] = [n for n in noted if n.asset_key == dg.AssetKey("mine")]
        assert "mine.sql:3: " in str(note.metadata["does not compile"].value)
    [odd] = [c for c in sql_models.checks() if next(iter(c.check_keys)).name == "odd"]
    [result] = odd(None, LakeResource(Settings(project=Project(home=lake.home))))
    assert not result.passed and result.severity == dg.AssetCheckSeverity.WARN and "odd.sql:2: " in result.description


def test_a_stage_publishes_once_at_its_end_and_seldom_on_the_way(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(catalog, "publish", lambda lake: seen.append(lake))
    monkeypatch.setattr(catalog.time, "monotonic", lambda: clock[0])
    clock = [0.0]
    publisher, lake = catalog.Publisher(every_s=30), Lake(tmp_path)
    for clock[0] in range(0, 100, 10):
        publisher.flushed(lake)
    assert len(seen) == 3
    publisher.ended(lake)
    assert len(seen) == 4


def test_a_catalog_that_cannot_be_written_fails_no_stage(tmp_path, monkeypatch, caplog):
    lake = small_lake(tmp_path)

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(catalog, "publish", full)
    catalog.Publisher().ended(lake)
    assert "could not be renewed" in caplog.text and "no space left" in caplog.text


def test_comments_do_not_change_the_code_version(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    one = models.load(folder(tmp_path / "1", a="-- words\nSELECT 1 AS x -- why\n"))
    two = models.load(folder(tmp_path / "2", a="select   1 as x"))
    assert models.code_version(one.models["a"], one) == models.code_version(two.models["a"], two)


def test_every_model_and_test_of_the_project_is_described():
    project = models.load()
    for model in (*project.models.values(), *project.tests.values()):
        assert model.description, model.path
    for test in project.tests.values():
        assert test.facts["asset"], test.path
        assert test.facts.get("severity", "error") in ("error", "warn"), test.path


def test_column_lineage_reaches_the_columns_of_the_lake(tmp_path):
    seen = {v.name: v for v in views.look(small_lake(tmp_path), [m.name for m in models.load().views])}
    assert all(v.lineage for v in seen.values()), [n for n, v in seen.items() if not v.lineage]
    log_ifd = seen["candidate_scores"].lineage["log_ifd"]
    assert ("ref", "final_scores", "sum_nll_response_given_prompt") in log_ifd
    assert ("ref", "final_scores", "sum_nll_response") in log_ifd
    assert seen["final_scores"].lineage["sum_nll_response"] == [
        ("source", name, "sum_nll_response") for name in ("settled_scores", "student_scores")
    ]
    # Said once, where the column is made.
    meaning = {(v.name, c.name): c.description for v in seen.values() for c in v.columns}
    assert meaning["decision_flips", "student_a"] == "slug of the student"
    assert meaning["score_summary", "candidate"].startswith("one of the four candidates")
    assert meaning["final_scores", "n_tokens_response"] == "tokens scored"
    assert meaning["record_lineage", "log_ifd"] == "L(y|x) - L(y); below 0 the instruction helps"
    assert [key for key, text in meaning.items() if not text] == []


def test_a_view_has_a_new_version_when_what_it_reads_changes(tmp_path):
    def versions():
        return {v.name: v.version for v in views.look(lake, ["candidate_scores", "score_summary", "teacher_cost"])}

    lake = small_lake(tmp_path)
    before = versions()
    assert versions() == before
    decide.STAGE.run(Settings(project=Project(home=tmp_path)), lake, student="tiny")
    after = versions()
    assert {name for name in before if before[name] != after[name]} == {"score_summary"}


def test_materialized_through_dagster(tmp_path):
    lake = small_lake(tmp_path)
    settings = Settings(project=Project(home=tmp_path))
    resources = {"lake": LakeResource(settings)}
    upstream = [dg.AssetSpec(n) for n in ("raw_dataset", "reflected_responses")]
    upstream += [
        dg.AssetSpec(n, partitions_def=names.students)
        for n in (names.STUDENT_CHECKPOINT, "student_scores", "finetuned_checkpoint")
    ]
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("students", ["tiny"])
        mine = [c for c in sql_models.checks() if next(iter(c.check_keys)).asset_key == dg.AssetKey("selected_set")]
        ran = dg.materialize(
            [asset_of(decide.STAGE), *mine, *upstream],
            instance=instance,
            partition_key="tiny",
            resources=resources,
            selection=dg.AssetSelection.assets("selected_set"),
        )
        assert ran.success
        results = {e.check_name: e for e in ran.get_asset_check_evaluations()}
        assert results["counts_reconcile"].passed and len(results) == len(mine)
        assert ran.asset_materializations_for_node("selected_set")[0].partition == "tiny"
        views = dg.materialize(
            [*sql_models.assets(), asset_of(decide.STAGE), *upstream],
            instance=instance,
            resources=resources,
            selection=dg.AssetSelection.groups(names.GROUP_SQL),
        )
        assert views.success
        made = {m.asset_key.to_user_string(): m for m in views.asset_materializations_for_node("sql_models")}
    assert set(made) == {view.name for view in models.load().views}
    facts = made["score_summary"].metadata
    assert facts["dagster/row_count"].value == 5
    assert len(facts["sample"].value.records) == 5
    assert (
        "| `ifd` |" in facts["columns_made_of"].value and "`candidate_scores.ifd_ppl`" in facts["columns_made_of"].value
    )
    lineage = facts["dagster/column_lineage"].value.deps_by_column
    assert ("candidate_scores", "ifd_ppl") in {(d.asset_key.to_user_string(), d.column_name) for d in lineage["ifd"]}
    flips = made["decision_flips"].metadata["dagster/column_lineage"].value.deps_by_column["reason_a"]
    # The asset selected_set shows the columns of its table; those of its other tables go by their full name.
    assert [(d.asset_key.to_user_string(), d.column_name) for d in flips] == [("selected_set", "decisions.reason")]
    assert lake.manifest("decisions", "student=tiny").rows == 8
