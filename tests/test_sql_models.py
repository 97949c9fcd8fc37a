"""The loader of dbt_like_sql, its assets with column lineage, its tests as checks."""

import shutil
from pathlib import Path

import dagster as dg
import pytest
from selection_lake import small_lake

from srt_assets.core.errors import UserError
from srt_assets.core.selection import decide
from srt_assets.core.sql import catalog, models, views
from srt_assets.defs import names, selection, sql_models
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
    with pytest.raises(UserError) as error:
        models.load(folder(tmp_path, **files))
    assert message in str(error.value)


def test_a_file_in_another_encoding_is_named_and_a_byte_order_mark_is_none_of_the_text(tmp_path):
    root = folder(tmp_path, a="SELECT 1 AS x")
    (root / "models" / "a.sql").write_bytes(b"\xef\xbb\xbf-- Words.\nSELECT 1 AS x")
    assert models.load(root).models["a"].description == "Words."
    (root / "models" / "a.sql").write_bytes("-- Words.\n-- gr\xfcn\nSELECT 1 AS x".encode("latin-1"))
    models._load.cache_clear()
    with pytest.raises(UserError, match=r"a\.sql:2: not UTF-8"):
        models.load(root)


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
        ("-- What must hold.", "broken.sql: whose check is it"),
        ("-- @asset: selected_sett", "did you mean selected_set"),
        ("-- @asset: selected_set\n-- @severity: warning", "@severity is 'warning'"),
    ],
)
def test_a_check_of_ones_own_says_what_it_lacks(tmp_path, monkeypatch, header, message):
    root = folder(tmp_path, a="SELECT 1 AS x")
    (root / "tests").mkdir()
    (root / "tests" / "broken.sql").write_text(f"{header}\nSELECT 1 AS x")
    monkeypatch.setattr(models, "folder", lambda: root)
    with pytest.raises(UserError, match=message):
        sql_models.checks()


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


def test_a_wrong_rule_and_a_wrong_view_stop_with_their_place(tmp_path, monkeypatch):
    lake = small_lake(tmp_path / "home")
    copy = tmp_path / "sql"
    shutil.copytree(models.folder(), copy)
    monkeypatch.setattr(models, "folder", lambda: copy)
    rule = copy / "models" / "marts" / "decisions.sql"
    good = rule.read_text()
    lines = good.splitlines()
    line = next(i for i, text in enumerate(lines, start=1) if "END AS margin_2" in text)
    lines[line - 1] = lines[line - 1].replace("END AS margin_2", "END + nonsense AS margin_2")
    rule.write_text("\n".join(lines))
    models._load.cache_clear()
    with pytest.raises(UserError, match=rf"decisions.sql:{line}: .*nonsense"):
        decide.STAGE.run(Settings(project=Project(home=lake.home)), lake, student="tiny")
    rule.write_text(good)
    (copy / "models" / "mine.sql").write_text("SELECT 1 AS x\nFROM {{ ref('candidate_scores') }}\nWHERE nonsense")
    models._load.cache_clear()
    with pytest.raises(UserError, match=r"mine.sql:3: .*nonsense"):
        catalog.publish(lake)
    models._load.cache_clear()


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
    assert ("source", "student_scores", "sum_nll_response_given_prompt") in log_ifd
    assert ("source", "student_scores", "sum_nll_response") in log_ifd
    # Said once, where the column is made.
    meaning = {(v.name, c.name): c.description for v in seen.values() for c in v.columns}
    assert meaning["decision_flips", "student_a"] == "slug of the student"
    assert meaning["score_summary", "candidate"].startswith("one of the four candidates")
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
            [selection.selected_set, *mine, *upstream],
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
            [*sql_models.assets(), selection.selected_set, *upstream],
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
