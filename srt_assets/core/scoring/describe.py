"""A summary of a student's scores for the UI: counts by status, IFD and r-IFD, some rows. All computed in SQL."""

from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.outcome import Description
from srt_assets.core.scoring.precision import ratios
from srt_assets.core.scoring.store import NOT_OK, TABLE
from srt_assets.core.sql import models
from srt_assets.core.tables import PASSES, rows_as_dicts

# Rows in the histogram.
_HISTOGRAM_ROWS = 20_000


def describe(lake: Lake, student: str) -> Description:
    """Counts of passes by status, mean and median IFD and r-IFD (ratios of perplexities), five rows.

    If `candidate_scores.sql` does not compile, the error replaces the ratios.
    """
    rows = lake.source(TABLE, f"student={student}")
    with lake.connect() as con:
        each = " UNION ALL ".join(f"SELECT status_{name} AS status FROM {rows}" for name in PASSES)
        by_status = con.execute(f"SELECT status, count(*) FROM ({each}) GROUP BY 1 ORDER BY 1").fetchall()
        numbers: dict[str, int | float | str] = {f"passes_{status}": count for status, count in by_status}
        try:
            models.check(models.RATIOS)
        except UserError as error:
            return Description(numbers | {"ratios": f"none: {error.message}"})
        con.execute(f"CREATE TEMP VIEW scored AS {ratios(f'SELECT * FROM {rows}')}")
        (whole,) = rows_as_dicts(
            con.execute(
                "SELECT avg(exp(log_ifd)) AS mean_ifd, exp(median(log_ifd)) AS median_ifd, "
                "avg(exp(log_r_ifd)) AS mean_r_ifd, exp(median(log_r_ifd)) AS median_r_ifd, "
                "count(*) FILTER (truncated) AS candidates_truncated FROM scored"
            )
        )
        by_candidate = con.execute(
            "SELECT candidate, avg(exp(log_ifd)) FROM scored WHERE log_ifd IS NOT NULL GROUP BY 1 ORDER BY 1"
        ).fetchall()
        sample = rows_as_dicts(
            con.execute(
                "SELECT sample_id, candidate, round(exp(log_ifd), 4) AS ifd, round(exp(log_r_ifd), 4) AS r_ifd, "
                "n_tokens_response AS n_tokens, status "
                f"FROM scored WHERE status <> '{NOT_OK}' ORDER BY sample_id, candidate LIMIT 5"
            )
        )
        values = con.execute(
            f"SELECT exp(log_ifd) FROM scored WHERE log_ifd IS NOT NULL ORDER BY sample_id LIMIT {_HISTOGRAM_ROWS}"
        ).fetchall()
    numbers |= {name: value for name, value in whole.items() if value is not None}
    numbers |= {f"mean_ifd_{candidate}": mean for candidate, mean in by_candidate}
    histogram = ("IFD (ratio of perplexities)", [value for (value,) in values]) if values else None
    return Description(numbers, sample, histogram)


def faults(lake: Lake, student: str) -> dict[str, int]:
    """Counts of invalid rows by kind; all zero in a valid table."""
    with lake.connect() as con:
        rows = lake.source(TABLE, f"student={student}")
        unsound = " OR ".join(
            f"coalesce(CASE WHEN status_{p} = 'ok' THEN NOT (isfinite(sum_nll_{p}) AND n_tokens_{p} > 0) "
            f"ELSE sum_nll_{p} IS NOT NULL END, true)"
            for p in PASSES
        )
        (found,) = rows_as_dicts(
            con.execute(
                f"SELECT (SELECT count(*) FROM {rows} WHERE {unsound}) AS unsound_rows, "
                f"(SELECT count(*) FROM candidates c ANTI JOIN {rows} s USING (sample_id, candidate)) "
                "AS candidates_without_row, "
                f"(SELECT count(*) - count(DISTINCT (sample_id, candidate)) FROM {rows}) AS double_rows"
            )
        )
    return found
