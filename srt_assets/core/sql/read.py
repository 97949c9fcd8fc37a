"""Reads tables and views of the lake as DataFrames, for notebooks."""

from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from srt_assets.core.errors import UserError, damage, nearest
from srt_assets.core.lake import Lake
from srt_assets.core.sql.views import connect
from srt_assets.home import project, to_read
from srt_assets.paths import expanded

if TYPE_CHECKING:
    import pandas as pd


def read(name: str, student: str | None = None, home: Path | str | None = None) -> "pd.DataFrame":
    """A table or view as a DataFrame; with `student`, only that student's rows.

    `home` defaults to that of the settings, and is not created. UserError if there is no such table (the error suggests
    the nearest) or the folder is not a home.
    """
    # Not read from srt.duckdb: if the notebook has opened that file for writing, DuckDB refuses to attach it again.
    con = connect(Lake(to_read(expanded(home, "home") if home else project().home)))
    try:
        rows = con.execute("SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal").fetchall()
        if name not in {table for table, _ in rows}:
            raise UserError(f"there is no table or view {name}", nearest(name, {table for table, _ in rows}))
        if student is None:
            return con.sql(f'FROM "{name}"').to_arrow_table().to_pandas()
        if (name, "student") not in rows:
            raise UserError(f"{name} has no column student", "leave student out")
        return con.sql(f'FROM "{name}" WHERE student = ?', params=[student]).to_arrow_table().to_pandas()
    except duckdb.Error as error:
        if explanation := damage(error):
            raise explanation from error
        raise
    finally:
        con.close()
