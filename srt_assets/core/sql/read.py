"""Tables and views of `srt.duckdb` for a notebook."""

from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from srt_assets.core.errors import UserError, nearest
from srt_assets.core.lake import Lake
from srt_assets.core.scratch import spill_into
from srt_assets.core.sql.catalog import ensure_published
from srt_assets.core.tables import sql_literal
from srt_assets.settings import load_settings

if TYPE_CHECKING:
    import pandas as pd


def read(name: str, student: str | None = None, home: Path | str | None = None) -> "pd.DataFrame":
    """A table or view as a DataFrame; with `student`, only that student's rows.

    `home` is the settings' home if left out. UserError names the nearest table when there is none of that name.
    """
    lake = Lake(Path(home) if home else load_settings().home)
    con = duckdb.connect()
    try:
        con.execute("SET enable_progress_bar = false")
        spill_into(con, lake.home)
        con.execute(f"ATTACH {sql_literal(str(ensure_published(lake)))} AS srt (TYPE duckdb, READ_ONLY)")
        rows = con.execute(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = 'srt'"
        ).fetchall()
        if name not in {table for table, _ in rows}:
            raise UserError(f"there is no table or view {name}", nearest(name, {table for table, _ in rows}))
        if student is None:
            return con.sql(f'SELECT * FROM srt."{name}"').to_arrow_table().to_pandas()
        if (name, "student") not in rows:
            raise UserError(f"{name} has no column student", "leave student out")
        return con.sql(f'SELECT * FROM srt."{name}" WHERE student = ?', params=[student]).to_arrow_table().to_pandas()
    finally:
        con.close()
