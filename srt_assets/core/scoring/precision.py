"""The error of scores in low precision, measured by scoring some records again in fp32.

A ratio computed in bf16 is off by about a hundredth. This file measures and stores the error per student and precision.
Which verdicts are closer than the error, and what happens to them, is in `selection/settle.py`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import duckdb

from srt_assets.core.scoring import DTYPES, EXACT
from srt_assets.core.sql import models
from srt_assets.core.tables import PASSES

MEASURED_RECORDS = 64
# Columns of `candidate_scores` that verdicts depend on: log ratios, and a loss in nats per token.
MEASURES = ("log_ifd", "log_r_ifd", "loss_response_given_prompt")
LOW = f"dtype <> '{DTYPES[EXACT]}'"
_NO_NUMBER = " OR ".join(f"status_{name} = 'not_finite'" for name in PASSES)
# Scores that overflowed in low precision and may be finite in fp32.
NOT_FINITE = f"{LOW} AND ({_NO_NUMBER})"


@dataclass(frozen=True)
class Error:
    """The largest error of a precision on `records` records.

    For each measure: the largest change from this precision to fp32, of one candidate's value or of the difference
    between two candidates of a record.
    """

    records: int = 0
    log_ifd: float = 0.0
    log_r_ifd: float = 0.0
    loss_response_given_prompt: float = 0.0

    def also(self, other: "Error") -> "Error":
        """Both measurements together: the larger error of each measure."""
        worst = {name: max(getattr(self, name), getattr(other, name)) for name in MEASURES}
        return Error(self.records + other.records, **worst)


Errors = Mapping[str, Error]
"""By the precision's name in the rows."""


def measured(con: duckdb.DuckDBPyConnection, before: str, after: str) -> Error:
    """The error of the scores `before` (one low precision) against `after` (fp32); both are SQL queries."""
    changes = ", ".join(f"exact.{m} - low.{m} AS {m}" for m in MEASURES)
    # The range of all changes, 0 included, bounds the change of every value and of every difference of two values.
    widths = ", ".join(f"greatest(max({m}), 0) - least(min({m}), 0) AS {m}" for m in MEASURES)
    worst = ", ".join(f"coalesce(max({m}), 0)" for m in MEASURES)
    [row] = con.execute(
        f"SELECT count(*), {worst} FROM (SELECT {widths} FROM (SELECT sample_id, {changes} "
        f"FROM ({ratios(before)}) AS low JOIN ({ratios(after)}) AS exact USING (sample_id, candidate)) "
        "GROUP BY sample_id)"
    ).fetchall()
    return Error(*row)


def ratios(scores: str) -> str:
    """SQL for the rows of `candidate_scores` with these scores (SQL) instead of the lake's. The model must compile."""
    return models.written_out(
        models.RATIOS, lambda name: f"({scores})" if name in (models.SCORES, "student_scores") else None
    )


def as_stats(errors: Errors) -> dict[str, int | float | str]:
    """The errors as numbers of a manifest; `of_stats` reads them."""
    return {f"{dtype}_error_{name}": value for dtype, error in errors.items() for name, value in asdict(error).items()}


def of_stats(stats: Mapping) -> dict[str, Error]:
    """The errors stored in a manifest of `student_scores`. Those of an older program, for one policy, are not read."""
    known = [dtype for dtype in DTYPES.values() if stats.get(f"{dtype}_error_records")]
    return {dtype: Error(**{name: stats[f"{dtype}_error_{name}"] for name in asdict(Error())}) for dtype in known}
