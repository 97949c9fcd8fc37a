"""Selective Reflection-Tuning as Dagster assets. `read()` gives any table or view as a pandas DataFrame."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__version__ = "0.2.0"


def read(name: str, student: str | None = None, home: Path | str | None = None) -> pd.DataFrame:
    """A table or view of the lake (`raw_records`, `decisions`, `score_summary` …); `student`: only that student's rows.

    `home` defaults to that of the settings. UserError if there is no such table or home.
    """
    from srt_assets.core.sql.read import read as read_table

    return read_table(name, student, home)
