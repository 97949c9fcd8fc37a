"""Facts of an artefact as Dagster metadata: numbers, column schema, five sample rows, a histogram."""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg

from srt_assets.core.manifest import Manifest
from srt_assets.core.outcome import Description
from srt_assets.core.tables import Table


def plain(facts: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Numbers and texts only: Dagster refuses numpy scalars, and a NaN would be drawn as an unexplained gap."""
    out: dict[str, int | float | str] = {}
    for name, value in facts.items():
        if isinstance(value, str):
            out[name] = value
        elif isinstance(value, bool) or value is None:
            out[name] = str(value)
        elif float(value).is_integer() and not isinstance(value, float):
            out[name] = int(value)
        else:
            out[name] = float(value) if math.isfinite(value) else str(value)
    return out


def describe_table(table: Table, manifest: Manifest, description: Description, partitioned: bool) -> dict[str, Any]:
    """Metadata under the names the UI knows, plus the description's own."""
    metadata: dict[str, Any] = {
        "dagster/partition_row_count" if partitioned else "dagster/row_count": manifest.rows,
        "dagster/column_schema": column_schema(table),
        "dagster/table_name": table.name,
        **plain(description.numbers),
    }
    if description.sample:
        metadata["sample"] = sample_table(description.sample)
    metadata |= {name: sample_table(rows) for name, rows in description.tables.items() if rows}
    if description.histogram and description.histogram[1]:
        metadata["histogram"] = dg.MetadataValue.md(f"![histogram]({histogram_png(*description.histogram)})")
    if description.lines:
        metadata["loss_curve"] = dg.MetadataValue.md(f"![loss by step]({lines_png(*description.lines)})")
    return metadata


def column_schema(table: Table) -> dg.TableSchema:
    return dg.TableSchema(
        columns=[dg.TableColumn(c.name, c.type, description=c.description) for c in table.columns],
    )


def sample_table(rows: list[dict]) -> dg.TableMetadataValue:
    records = [dg.TableRecord({k: _cell(v) for k, v in row.items()}) for row in rows]
    schema = dg.TableSchema(columns=[dg.TableColumn(name, "string") for name in rows[0]])
    return dg.MetadataValue.table(records=records, schema=schema)


def _cell(value: Any) -> str | int | float | bool:
    if isinstance(value, float):
        # Significant digits, not places: a learning rate of 2e-5 is not 0.
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return value if isinstance(value, str | int) else ("" if value is None else str(value))


def png_uri(figure: Any) -> str:
    """A matplotlib figure as a data URI; small, for each materialization keeps its own in the event log."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=70, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@contextmanager
def _own_style() -> Iterator[None]:
    """Draw by matplotlib's defaults: a file `matplotlibrc` beside the data has no say (it may ask for LaTeX)."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@_own_style()
def histogram_png(title: str, values: list[float]) -> str:
    """A histogram of finite values as a data URI."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.4))
    axes = figure.subplots()
    axes.hist([v for v in values if v is not None and math.isfinite(v)], bins=40, color="#4c72b0")
    axes.set_xlabel(title)
    axes.set_ylabel("count")
    return png_uri(figure)


@_own_style()
def lines_png(x: str, y: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Lines over common axes, each with its name, as a data URI."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.6))
    axes = figure.subplots()
    for name, points in lines.items():
        axes.plot(
            [at for at, _ in points], [value for _, value in points], label=name, marker="." if len(points) < 30 else ""
        )
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(fontsize=7)
    return png_uri(figure)
