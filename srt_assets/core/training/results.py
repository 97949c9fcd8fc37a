"""Trainings as rows: `training_runs` and `training_steps`, written from finished checkpoints and read for people."""

from datetime import datetime
from typing import Any

from srt_assets.core.lake import Lake, Manifest
from srt_assets.core.outcome import Description
from srt_assets.core.training import job
from srt_assets.core.training.finished import Finished

TABLE = "training_runs"
STEPS = "training_steps"


def are_there(lake: Lake, student: str) -> bool:
    """Whether every checkpoint that `training_runs` names still exists."""
    con = lake.connect()
    try:
        paths = con.execute("SELECT path FROM training_runs WHERE student = ?", [student]).fetchall()
    finally:
        con.close()
    return all(
        (lake.home / path / "config.json").exists() or (lake.home / path / "adapter_config.json").exists()
        for (path,) in paths
    )


def commit(lake: Lake, student: str, want: str, done: list[Finished]) -> Manifest:
    """Make these trainings, the active policy's first, the content of both tables."""
    partition = f"student={student}"
    steps = [{**line, "student": student, "run": f.path.name} for f in done for line in f.steps]
    runs = [_row(lake, student, f, main=i == 0) for i, f in enumerate(done)]
    facts: dict[str, Any] = {"fingerprint": want, "code_version": job.VERSION, "partition": partition}
    lake.commit(STEPS, [lake.write_part(STEPS, steps, partition)], **facts)
    return lake.commit(TABLE, [lake.write_part(TABLE, runs, partition)], **facts)


def _row(lake: Lake, student: str, done: Finished, main: bool) -> dict[str, Any]:
    record = done.record
    return {
        **record,
        "student": student,
        # An interrupted stage may have moved it under another name than its process knew.
        "run": done.path.name,
        "is_active_policy": main,
        "left_out": sum(record["left_out"].values()),
        "path": str(done.path),
        "finished_at": datetime.fromisoformat(record["finished_at"]),
    }


def describe(lake: Lake, student: str) -> Description:
    """What people look at first: losses before and after, speed, memory, the counts of the split."""
    con = lake.connect()
    try:
        found = con.execute(
            "SELECT * EXCLUDE (student, finished_at) FROM training_runs WHERE student = ? "
            "ORDER BY is_active_policy DESC, run",
            [student],
        )
        names = [d[0] for d in found.description]
        runs = [dict(zip(names, values, strict=True)) for values in found.fetchall()]
        columns = ("step", "loss", "learning_rate", "grad_norm", "tokens")
        last = con.execute(
            f"SELECT {', '.join(columns)} FROM training_steps WHERE student = ? AND run = ? ORDER BY step DESC LIMIT 5",
            [student, runs[0]["run"]],
        ).fetchall()
    finally:
        con.close()
    numbers = {k: v for k, v in runs[0].items() if v is not None and k != "is_active_policy"}
    return Description(numbers, [dict(zip(columns, row, strict=True)) for row in reversed(last)])


def curve(lake: Lake, student: str) -> dict[str, list[tuple[int, float]]]:
    """Loss by step for every current run of a student, by arm: what the loss picture is drawn from."""
    con = lake.connect()
    try:
        found = con.execute(
            "SELECT r.arm, s.step, s.loss FROM training_steps s JOIN training_runs r USING (student, run) "
            "WHERE student = ? ORDER BY r.is_active_policy DESC, r.arm, s.step",
            [student],
        ).fetchall()
    finally:
        con.close()
    curves: dict[str, list[tuple[int, float]]] = {}
    for arm, step, loss in found:
        curves.setdefault(arm, []).append((step, loss))
    return curves
