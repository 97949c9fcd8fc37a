"""The models of `dbt_like_sql/` as assets, and its tests as asset checks. The models only read."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from srt_assets.core import stages
from srt_assets.core.sql import faults, models
from srt_assets.defs import names
from srt_assets.defs.failures import explained, stop_if_failed
from srt_assets.defs.metadata import sample_table
from srt_assets.defs.one_student import student_of
from srt_assets.defs.resources import LakeResource

if TYPE_CHECKING:
    from srt_assets.core.sql.views import Seen


def _maker(kind: str, name: str) -> str:
    """The asset of a reference: the stage's for a table, its own for a view."""
    stage = stages.maker(name) if kind == "source" or name == models.RULE else None
    return stage.asset if stage else name


def assets() -> list[dg.AssetsDefinition]:
    """One asset per model, all made by one step."""
    project = models.load()
    views = faults.usable_views()
    if not views:
        return []
    specs = [
        dg.AssetSpec(
            model.name,
            deps=sorted({_maker("ref", r) for r in model.refs} | {_maker("source", s) for s in model.sources}),
            description=model.description or "A SQL model.",
            group_name=names.GROUP_SQL,
            kinds={"duckdb", "sql"},
            code_version=models.code_version(model, project),
            skippable=True,
        )
        for model in views
    ]

    @dg.multi_asset(name="sql_models", specs=specs, can_subset=True)
    def sql_models(
        context: dg.AssetExecutionContext, lake: dg.ResourceParam[LakeResource]
    ) -> Iterator[dg.MaterializeResult | dg.AssetObservation]:
        """Describe each view. A view that does not compile is logged with file and line, and skipped."""
        from srt_assets.core.sql.views import look

        store = lake.open()
        wanted = {key.to_user_string() for key in context.selected_asset_keys}
        for name, error in models.load().broken.items():
            if name in wanted:
                context.log.error(str(error))
                yield dg.AssetObservation(name, metadata={"does not compile": error.message})
        with explained(context):
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
    stage = stages.maker(table) if asset != table else None
    # The asset's main table is shown as its own; columns of its other tables go by `table.column`.
    own = stage is None or stage.main == table
    return dg.TableColumnDep(dg.AssetKey(asset), column if own else f"{table}.{column}")


def checks() -> list[dg.AssetChecksDefinition]:
    """One check per file of `dbt_like_sql/tests`: it passes when the query gives no row."""
    return [_check(test) for test in models.load().tests.values() if not faults.wrong_fact(test)]


def _check(test: models.Model) -> dg.AssetChecksDefinition:
    blocking = not test.is_warning
    of_student = test.facts["asset"] in names.STUDENT_SIDE

    spec = dg.AssetCheckSpec(
        test.name,
        asset=test.facts["asset"],
        description=test.description,
        blocking=blocking,
        # A check of a per-student asset looks at that student only, so that it does not block other students.
        partitions_def=names.students if of_student else None,
    )

    # A multi-check for a single check, because only a generator can yield the result and then fail with its own
    # message.
    @dg.multi_asset_check(name=spec.get_python_identifier(), specs=[spec])
    def check(
        context: dg.AssetCheckExecutionContext, lake: dg.ResourceParam[LakeResource]
    ) -> Iterator[dg.AssetCheckResult]:
        from srt_assets.core.sql.views import failing_rows

        if error := models.load().broken.get(test.name):  # the test is broken, not the data, so it blocks no run
            yield dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN, description=str(error))
            return
        with explained(context):
            student = student_of(context, needed=of_student)
            bad, sample = failing_rows(lake.open(), test.name, student if of_student else None)
        severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN
        told = f"{test.description}\n{bad:,} row(s) violate this, such as {sample[0]}" if bad else ""
        result = dg.AssetCheckResult(
            check_name=test.name,
            passed=bad == 0,
            severity=severity,
            description=f"{told}\n  -> {test.facts.get('remedy', 'see the rows')}" if bad else None,
            metadata={
                "failing_rows": bad,
                "example": dg.MetadataValue.json(sample),
                "remedy": test.facts.get("remedy", ""),
            },
        )
        yield result
        stop_if_failed([result])

    return check
