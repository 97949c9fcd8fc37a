"""The models of `dbt_like_sql/` as assets, and its tests as asset checks. They only read; nothing waits for them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from srt_assets.core.errors import UserError, nearest
from srt_assets.core.sql import models
from srt_assets.core.tables import TABLES
from srt_assets.defs import names
from srt_assets.defs.metadata import sample_table
from srt_assets.defs.resources import LakeResource
from srt_assets.defs.run_stage import explained

if TYPE_CHECKING:
    from srt_assets.core.sql.views import Seen

# Which asset fills a table of the lake.
MAKERS = {
    "raw_records": names.RAW_DATASET,
    "raw_rejects": names.RAW_DATASET,
    "teacher_calls": names.REFLECTED_RESPONSES,
    "candidates": names.REFLECTED_RESPONSES,
    "students": names.STUDENT_CHECKPOINT,
    "student_scores": names.STUDENT_SCORES,
    "training_runs": names.FINETUNED_CHECKPOINT,
    "training_steps": names.FINETUNED_CHECKPOINT,
}


# The table whose columns an asset shows as its own; columns of its other tables go by `table.column`.
MAIN = {
    names.RAW_DATASET: "raw_records",
    names.REFLECTED_RESPONSES: "candidates",
    names.STUDENT_CHECKPOINT: "students",
    names.STUDENT_SCORES: "student_scores",
    names.SELECTED_SET: "selected_set",
    names.FINETUNED_CHECKPOINT: "training_runs",
}


def _maker(kind: str, name: str) -> str:
    if kind == "ref" and name != models.RULE:
        return name
    return MAKERS.get(name, names.SELECTED_SET)


def assets() -> list[dg.AssetsDefinition]:
    """One asset per model, all made by one step."""
    project = models.load()
    if not project.views:
        return []
    for model in project.views:
        if model.name in (*names.TEACHER_SIDE, *names.STUDENT_SIDE, names.PIPELINE_STATUS):
            raise UserError(f"{model.path}: there is an asset named {model.name} already", "give the file another name")
    specs = [
        dg.AssetSpec(
            model.name,
            deps=sorted({_maker("ref", r) for r in model.refs} | {_maker("source", s) for s in model.sources}),
            description=model.description,
            group_name=names.GROUP_SQL,
            kinds={"duckdb", "sql"},
            code_version=models.code_version(model, project),
            skippable=True,
        )
        for model in project.views
    ]

    @dg.multi_asset(name="sql_models", specs=specs, can_subset=True)
    def sql_models(
        context: dg.AssetExecutionContext, lake: dg.ResourceParam[LakeResource]
    ) -> Iterator[dg.MaterializeResult]:
        """Publish the views in `srt.duckdb` and look at each of them."""
        from srt_assets.core.sql.views import look

        store = lake.open()
        wanted = {key.to_user_string() for key in context.selected_asset_keys}
        with explained():
            found = list(look(store, [m.name for m in models.load().views if m.name in wanted]))
        for seen in found:
            yield dg.MaterializeResult(
                asset_key=seen.name, metadata=_metadata(seen), data_version=dg.DataVersion(seen.version)
            )

    return [sql_models]


def _metadata(seen: "Seen") -> dict[str, Any]:
    columns = [dg.TableColumn(c.name, c.type, description=c.description) for c in seen.columns]
    lineage = _lineage(seen.lineage)
    metadata: dict[str, Any] = {
        "dagster/row_count": seen.rows,
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "dagster/table_name": seen.name,
        "dagster/column_lineage": lineage,
        # The open-source UI does not draw the lineage of columns.
        "columns_made_of": dg.MetadataValue.md(_as_table(lineage)),
    }
    if seen.sample:
        metadata["sample"] = sample_table(seen.sample)
    return metadata


def _as_table(lineage: dg.TableColumnLineage) -> str:
    rows = [
        f"| `{column}` | {', '.join(f'`{d.asset_key.to_user_string()}.{d.column_name}`' for d in deps) or 'rows'} |"
        for column, deps in lineage.deps_by_column.items()
    ]
    return "\n".join(["| column | made of |", "|---|---|", *rows])


def _lineage(columns: dict[str, list[tuple[str, str, str]]]) -> dg.TableColumnLineage:
    return dg.TableColumnLineage({column: [_column(*dep) for dep in deps] for column, deps in columns.items()})


def _column(kind: str, table: str, column: str) -> dg.TableColumnDep:
    asset = _maker(kind, table)
    own = asset not in MAIN or MAIN[asset] == table
    return dg.TableColumnDep(dg.AssetKey(asset), column if own else f"{table}.{column}")


def checks() -> list[dg.AssetChecksDefinition]:
    """One check per file of `dbt_like_sql/tests`: it passes when the query gives no row."""
    project = models.load()
    known = {*names.TEACHER_SIDE, *names.STUDENT_SIDE, *(model.name for model in project.views)}
    for test in project.tests.values():
        asset = test.facts.get("asset")
        if asset is None:
            raise UserError(f"{test.path}: whose check is it?", "add a line such as -- @asset: selected_set at the top")
        if asset not in known:
            raise UserError(f"{test.path}: @asset names {asset}, which does not exist", nearest(asset, known))
        severity = test.facts.get("severity", "error")
        if severity not in ("error", "warn"):
            raise UserError(f"{test.path}: @severity is {severity!r}", "write warn, or leave the line out")
    return [_check(test) for test in project.tests.values()]


def _check(test: models.Model) -> dg.AssetChecksDefinition:
    blocking = not test.is_warning

    @dg.asset_check(
        name=test.name,
        asset=test.facts["asset"],
        description=test.description,
        blocking=blocking,
        # One student's fault must not hold up another: a check of a student's asset looks at that student only.
        partitions_def=names.students if test.facts["asset"] in names.STUDENT_SIDE else None,
    )
    def check(context, lake: dg.ResourceParam[LakeResource]) -> dg.AssetCheckResult:
        from srt_assets.core.sql.views import failing_rows

        student = context.partition_key if context.has_partition_key else None
        with explained():
            bad, sample = failing_rows(lake.open(), test.name, student)
        severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN
        told = f"{test.description}\n{bad:,} row(s) say otherwise, such as {sample[0]}" if bad else ""
        return dg.AssetCheckResult(
            passed=bad == 0,
            severity=severity,
            description=f"{told}\n  -> {test.facts.get('remedy', 'see the rows')}" if bad else None,
            metadata={
                "failing_rows": bad,
                "example": dg.MetadataValue.json(sample),
                "remedy": test.facts.get("remedy", ""),
            },
        )

    return check


assert set(MAKERS) <= set(TABLES)
