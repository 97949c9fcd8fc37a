"""A look at a student's scores: counts by status, the ratios people know, a few rows. Everything computed in SQL."""

from srt_assets.core.lake import Lake
from srt_assets.core.outcome import Description
from srt_assets.core.student.store import NOT_OK, TABLE
from srt_assets.core.tables import PASSES

_LOG_IFD = (
    "sum_nll_response_given_prompt / n_tokens_response_given_prompt - sum_nll_response / n_tokens_response AS log_ifd"
)
_LOG_R_IFD = (
    "sum_nll_instruction_given_response / n_tokens_instruction_given_response "
    "- sum_nll_instruction / n_tokens_instruction AS log_r_ifd"
)
# A histogram of all rows needs no more than this many of them.
_HISTOGRAM_ROWS = 20_000


def describe(lake: Lake, student: str) -> Description:
    """Counts of rows and of passes by status, mean and median IFD and r-IFD (ratios of perplexities), five rows."""
    with lake.connect() as con:
        con.execute(
            f"CREATE TEMP VIEW scored AS SELECT *, {_LOG_IFD}, {_LOG_R_IFD} "
            f"FROM {lake.source(TABLE, f'student={student}')}"
        )
        numbers: dict[str, int | float | str] = {}
        each = " UNION ALL ".join(f"SELECT status_{name} AS status FROM scored" for name in PASSES)
        for status, count in con.execute(f"SELECT status, count(*) FROM ({each}) GROUP BY 1 ORDER BY 1").fetchall():
            numbers[f"passes_{status}"] = count
        for name, column in (("ifd", "log_ifd"), ("r_ifd", "log_r_ifd")):
            mean, median = con.execute(f"SELECT avg(exp({column})), exp(median({column})) FROM scored").fetchone() or ()
            if mean is not None:
                numbers |= {f"mean_{name}": mean, f"median_{name}": median}
        for candidate, mean in con.execute(
            "SELECT candidate, avg(exp(log_ifd)) AS mean FROM scored WHERE log_ifd IS NOT NULL GROUP BY 1 ORDER BY 1"
        ).fetchall():
            numbers[f"mean_ifd_{candidate}"] = mean
        truncated = " OR ".join(f"truncated_{name}" for name in PASSES)
        row = con.execute(f"SELECT count(*) FILTER ({truncated}) FROM scored").fetchone()
        numbers["candidates_truncated"] = row[0] if row else 0
        columns = ("sample_id", "candidate", "ifd", "r_ifd", "n_tokens", "status")
        sample = con.execute(
            "SELECT sample_id, candidate, round(exp(log_ifd), 4), round(exp(log_r_ifd), 4), n_tokens_response, "
            f"status_response_given_prompt FROM scored WHERE status_response <> '{NOT_OK}' "
            "ORDER BY sample_id, candidate LIMIT 5"
        ).fetchall()
        values = con.execute(
            f"SELECT exp(log_ifd) FROM scored WHERE log_ifd IS NOT NULL ORDER BY sample_id LIMIT {_HISTOGRAM_ROWS}"
        ).fetchall()
    histogram = ("IFD (ratio of perplexities)", [value for (value,) in values]) if values else None
    return Description(numbers, [dict(zip(columns, row, strict=True)) for row in sample], histogram)


def faults(lake: Lake, student: str) -> dict[str, int]:
    """Rows that break the table's promise, by kind; all zero in a sound table."""
    with lake.connect() as con:
        rows = lake.source(TABLE, f"student={student}")
        unsound = " OR ".join(
            f"coalesce(CASE WHEN status_{p} = 'ok' THEN NOT (isfinite(sum_nll_{p}) AND n_tokens_{p} > 0) "
            f"ELSE sum_nll_{p} IS NOT NULL END, true)"
            for p in PASSES
        )
        found = con.execute(
            f"SELECT (SELECT count(*) FROM {rows} WHERE {unsound}), "
            f"(SELECT count(*) FROM candidates c ANTI JOIN {rows} s USING (sample_id, candidate)), "
            f"(SELECT count(*) - count(DISTINCT (sample_id, candidate)) FROM {rows})"
        ).fetchone()
    assert found is not None
    return dict(zip(("unsound_rows", "candidates_without_row", "double_rows"), found, strict=True))
