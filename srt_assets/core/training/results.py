"""The tables `training_runs` and `training_steps`: written from finished checkpoints, summarized and checked."""

from datetime import datetime
from math import isfinite
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from srt_assets.core.lake import Lake
from srt_assets.core.outcome import Checked, Description, Facts
from srt_assets.core.parquet import read_failures
from srt_assets.core.tables import TABLES, rows_as_dicts
from srt_assets.core.training.finished import Finished, directory

TABLE = "training_runs"
STEPS = "training_steps"
# Key in the manifest: names of the runs, separated by spaces, so that `srt status` need not open a part.
RUNS = "runs"
FINITE = "loss_is_finite"
LEARNED = "held_out_loss_fell"
SAVED = "saved_model_is_the_trained_one"
# Largest allowed difference in nats per response token between the trained model, rounded to the precision in which it
# is saved, and the model loaded from disk.
MOST_APART = {"fp64": 1e-4, "fp32": 1e-4, "bf16": 5e-3, "fp16": 5e-3}
NOT_MEASURED = "not measured by the program that made it"


def current(lake: Lake, student: str) -> list[Path]:
    """The checkpoints that `training_runs` names. Damaged if the table cannot be read."""
    manifest = lake.manifest(TABLE, f"student={student}")
    names = manifest.stats.get(RUNS) if manifest else ""
    if names is None:  # an older program wrote them only into the rows
        runs: list[str] = []
        for part in lake.parts(TABLE, f"student={student}"):
            with read_failures(part):
                runs += pq.read_table(part, columns=["run"])["run"].to_pylist()
    else:
        runs = names.split()
    return [directory(lake, student) / run for run in runs]


def paths_in_parts(lake: Lake, student: str) -> set[str]:
    """The stored values of the column `path`, which are those of the home when the part was written."""
    with duckdb.connect() as con:
        select = TABLES[TABLE].select_sql(lake.parts(TABLE, f"student={student}"))
        return {path for (path,) in con.execute(f"SELECT path FROM ({select})").fetchall()}


def parts(lake: Lake, student: str, done: list[Finished]) -> dict[str, list[str]]:
    """Write parts of both tables for these trainings, that of the active policy first; returns the parts by table."""
    partition = f"student={student}"
    steps = [{**line, "student": student, "run": f.path.name} for f in done for line in f.steps]
    runs = [
        {
            **f.record,
            "student": student,
            # An interrupted stage may have moved it to another name than the one in its record.
            "run": f.path.name,
            "is_active_policy": f is done[0],
            "left_out": sum(f.record["left_out"].values()),
            "path": str(f.path),
            "finished_at": datetime.fromisoformat(f.record["finished_at"]),
        }
        for f in done
    ]
    return {TABLE: [lake.write_part(TABLE, runs, partition)], STEPS: [lake.write_part(STEPS, steps, partition)]}


def check(lake: Lake, student: str) -> list[Checked]:
    """Whether all losses are finite, whether every saved model equals the trained one, and whether the held-out loss of
    the active policy's training fell (not passed if nothing was held out).
    """
    bad = [f"{arm} step {step}" for arm, line in curve(lake, student).items() for step, x in line if not isfinite(x)]
    with lake.connect() as con:
        found = con.execute(
            "SELECT eval_loss_before, eval_loss_after FROM training_runs WHERE student = ? AND is_active_policy",
            [student],
        ).fetchone()
        compared = rows_as_dicts(
            con.execute(
                "SELECT arm, saved_dtype, compared_on, trained_loss, saved_loss, saved_difference, "
                "merge_difference FROM training_runs "
                "WHERE student = ? ORDER BY is_active_policy DESC, arm",
                [student],
            )
        )
    before, after = found or (None, None)
    measured = before is not None and after is not None
    losses: Facts = {"before": before, "after": after} if measured else {"why": "no record was held out"}
    return [
        Checked(FINITE, not bad, {"steps_without_a_number": ", ".join(bad[:20]) or "none"}),
        _as_saved(compared),
        Checked(LEARNED, measured and after < before, losses),
    ]


def _as_saved(runs: list[dict]) -> Checked:
    """Whether each model on disk has the loss of the trained one. Passes for older programs, which did not measure."""
    found = {run["arm"]: _verdict(run) for run in runs}
    return Checked(SAVED, all(good for good, _ in found.values()), {arm: told for arm, (_, told) in found.items()})


def _verdict(run: dict) -> tuple[bool, str]:
    if run["compared_on"] is None:
        return True, NOT_MEASURED
    limit, apart, merge = MOST_APART.get(run["saved_dtype"] or ""), run["saved_difference"], run["merge_difference"]
    # Passed only with a known limit and a difference below it; NaN fails.
    good = limit is not None and apart is not None and apart <= limit
    told = (
        f"loss {run['trained_loss']} as trained and {run['saved_loss']} as saved in {run['saved_dtype']}, "
        f"{apart} apart, at most {limit} is rounding"
    )
    if merge is not None:
        good &= merge <= MOST_APART["fp32"]
        told += f"; merging the adapters moved it by {merge} in fp32, at most {MOST_APART['fp32']} is rounding"
    return good, f"{'as trained' if good else 'another model'}: {told}; on {run['compared_on']}"


def describe(lake: Lake, student: str) -> Description:
    """Losses before and after, speed, memory, sizes of the splits, and the loss curve."""
    with lake.connect() as con:
        runs = rows_as_dicts(
            con.execute(
                "SELECT * EXCLUDE (student, finished_at, seconds), seconds AS training_seconds FROM training_runs "
                "WHERE student = ? ORDER BY is_active_policy DESC, run",
                [student],
            )
        )
        last = rows_as_dicts(
            con.execute(
                "SELECT step, loss, learning_rate, grad_norm, tokens FROM training_steps WHERE student = ? AND run = ? "
                "ORDER BY step DESC LIMIT 5",
                [student, runs[0]["run"]],
            )
        )
    numbers = {k: v for k, v in runs[0].items() if v is not None and k != "is_active_policy"}
    lines = ("optimizer step", "loss (nats per response token)", curve(lake, student))
    return Description(numbers, last[::-1], lines=lines)


def curve(lake: Lake, student: str) -> dict[str, list[tuple[int, float]]]:
    """Loss by step for every current run of a student, by arm, for the loss plot."""
    with lake.connect() as con:
        found = con.execute(
            "SELECT r.arm, s.step, s.loss FROM training_steps s JOIN training_runs r USING (student, run) "
            "WHERE student = ? ORDER BY r.is_active_policy DESC, r.arm, s.step",
            [student],
        ).fetchall()
    curves: dict[str, list[tuple[int, float]]] = {}
    for arm, step, loss in found:
        curves.setdefault(arm, []).append((step, loss))
    return curves
