"""The stage of the asset `finetuned_checkpoint`: decides which trainings are needed, runs them, records them."""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srt_assets.core.errors import StageError, UserError
from srt_assets.core.files import read_own
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.manifest import Manifest
from srt_assets.core.outcome import Check, Checked, Description, Facts, Made
from srt_assets.core.progress import Progress
from srt_assets.core.stage import Stage, Work
from srt_assets.core.students import checkpoints
from srt_assets.core.training import finished, job, launch, results, rows
from srt_assets.core.training.finished import Finished
from srt_assets.core.training.plan import count_steps
from srt_assets.core.training.results import STEPS, TABLE
from srt_assets.settings import Settings

LOOK_EVERY_S = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arm:
    """One wanted training: its rows, its fingerprint, its steps (0 = by `training.epochs`)."""

    name: str
    rows: rows.Rows
    fingerprint: str
    steps: int


class FinetunedCheckpoint(Stage):
    """The student trained on its selected set: a standard Hugging Face checkpoint with its training record."""

    asset = "finetuned_checkpoint"
    tables = (TABLE, STEPS)
    version = job.VERSION
    needs = ("selected_set", "student_checkpoint")
    group = "training"
    kinds = frozenset({"huggingface", "pytorch"})
    per_student = True
    pool = "device"
    checks = (
        Check(
            results.FINITE,
            "Every step's loss is a finite number.",
            blocking=True,
            remedy="lower training.learning_rate, or train with student.dtype = 'fp32'",
        ),
        Check(
            results.SAVED,
            "The model loaded from the finished checkpoint has the loss of the model that was trained.",
            blocking=True,
            remedy="do not use this checkpoint: it is another model than was trained; train with another "
            "training.method, and report the student's architecture",
        ),
        Check(results.LEARNED, "The loss on records that never entered training is lower than before.", blocking=False),
    )

    def wanted(self, settings: Settings, lake: Lake, student: str = "") -> Fingerprint:
        """The fingerprint of the wanted trainings: student, selected rows, and all settings that change the result."""
        info = checkpoints.get(lake, student)
        selected = _content(lake, "selected_set", student)
        arms = settings.training.arms
        data: dict[str, Any] = {"selected_set": selected.content_hash, "policy": settings.selection.policy}
        if arms:
            data |= {"arms": list(arms), "policy_decisions": _content(lake, "policy_decisions", student).content_hash}
        return job.training_fingerprint(settings, info, **data)

    def is_there(self, lake: Lake, student: str) -> bool:
        """Whether every checkpoint that `training_runs` names still exists."""
        return all(finished.is_whole(path) for path in results.current(lake, student))

    def is_outdated(self, lake: Lake, student: str) -> bool:
        """Whether the parts hold paths of a home that has moved since. Readers get the present paths in any case."""
        return {str(path) for path in results.current(lake, student)} != results.paths_in_parts(lake, student)

    def make(self, work: Work) -> Made:
        """Run the missing trainings. An interrupted training continues from its last saved state.

        UserError: too few rows, damaged data, a student that cannot be trained. StageError: a training failed.
        """
        done = _trainings(work)
        main = done[0].record
        stats = {k: main[k] for k in ("steps", "tokens", "tokens_per_s", "peak_memory_bytes")}
        stats |= {"training_seconds": main["seconds"], "trainings": len(done)}
        stats[results.RUNS] = " ".join(f.path.name for f in done)
        return Made(results.parts(work.lake, work.student, done), stats)

    def tidy(self, work: Work) -> Facts:
        """Delete checkpoints beyond `training.keep_last`, and states that were not continued for a week."""
        current = results.current(work.lake, work.student)
        gone = finished.superseded(work.lake, work.student, work.settings.training.keep_last, current)
        for path in [*gone, *finished.abandoned_states(work.lake, work.student)]:
            finished.delete(path)
        return {"checkpoints_removed": len(gone)}

    def describe(self, lake: Lake, student: str = "") -> Description:
        return results.describe(lake, student)

    def check(self, lake: Lake, student: str = "") -> list[Checked]:
        return results.check(lake, student)


STAGE = FinetunedCheckpoint()


def _content(lake: Lake, table: str, student: str) -> Manifest:
    manifest = lake.manifest(table, f"student={student}")
    if manifest is None or not manifest.complete:
        raise UserError(f"{student!r} has no finished {table}", f"make it: srt run selected_set --student {student}")
    return manifest


def _trainings(work: Work) -> list[Finished]:
    """The active policy's training first, then the arms, with equally many steps and the same held-out records."""
    settings, lake, student = work.settings, work.lake, work.student

    def finish(arm: Arm) -> Finished:
        return finished.find(lake, student, arm.fingerprint) or _train(work, arm)

    active = active_arm(settings, lake, student)
    names = [name for name in settings.training.arms if name != active.name]
    # Before the first training, so that an arm that cannot be trained fails at once.
    data = [(name, rows.of_policy(lake, student, name, active.rows)) for name in dict.fromkeys(names)]
    main = finish(active)
    # The first training's number of steps: rows that are too long are known only after tokenizing.
    return [main, *(finish(_arm(settings, lake, student, name, d, main.record["steps"])) for name, d in data)]


def active_arm(settings: Settings, lake: Lake, student: str) -> Arm:
    """The training of the selected set. UserError if it has too few rows."""
    training = settings.training
    active = rows.active(lake, student, training.held_out, settings.project.seed)
    if not active.sizes[rows.TRAIN]:
        raise UserError(
            f"no training row of {student!r} is left beside the held-out ones", "lower training.held_out or add data"
        )
    return _arm(settings, lake, student, settings.selection.policy, active, training.max_steps)


def _arm(settings: Settings, lake: Lake, student: str, name: str, data: rows.Rows, steps: int) -> Arm:
    made_from = checkpoints.get(lake, student)
    mark = job.training_fingerprint(settings, made_from, data=data.data_hash, arm=name, steps=steps).digest
    return Arm(name, data, mark, steps)


def _train(work: Work, arm: Arm) -> Finished:
    settings, lake, student, progress = work.settings, work.lake, work.student, work.progress
    _verify(lake, student)
    folder = lake.home / "training" / student / arm.fingerprint[:16]
    info = checkpoints.get(lake, student)
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{arm.name}-{arm.fingerprint[:8]}"
    task = job.make(
        settings,
        info,
        folder,
        run=name,
        arm=arm.name,
        data_hash=arm.rows.data_hash,
        steps=arm.steps,
        training_fingerprint=arm.fingerprint,
        parent=student,
        # A local path means nothing on another machine, so only its name is stored.
        base=Path(info.source).name if Path(info.source).is_absolute() else info.source,
        rows_by=arm.rows.counts,
        generation=info.generation + 1,
        number=finished.next_number(lake, student),
        policy=settings.selection.model_dump() | {"policy": arm.name},
        n_repeated=arm.rows.n_repeated,
        held_out=settings.training.held_out,
    )
    arm.rows.move(task.rows_file)
    file = task.write()
    task.failure.unlink(missing_ok=True)
    n = arm.rows.sizes[rows.TRAIN]
    log.info("training %r on %d rows of %s", student, n, arm.name)
    progress(0, count_steps(n, task.batch_size, task.epochs, arm.steps), "steps", arm=arm.name)
    with _followed(folder / "live.json", arm.name, progress):
        devices = launch.visible(settings.student.devices, os.environ)
        env = {**launch.tokenizing(task.processes), **devices, **launch.hang_up()}
        code = (work.launch or launch.plain)(launch.command(file, task.processes), env)
    if code != 0:
        raise _explain(task, code)
    place = finished.directory(lake, student) / name
    place.parent.mkdir(parents=True, exist_ok=True)
    task.final.replace(place)
    shutil.rmtree(folder)
    return Finished(place, json.loads(read_own(place / job.RECORD)))


def _verify(lake: Lake, student: str) -> None:
    """Read every byte of a training's inputs, also of files with unchanged stat values, because it takes hours."""
    for table in ("candidates", "raw_records"):
        lake.verify(table)
    for table in ("decisions", "policy_decisions", "selected_set"):
        lake.verify(table, f"student={student}")
    checkpoints.verify(lake, student)


@contextmanager
def _followed(live: Path, arm: str, progress: Progress) -> Iterator[None]:
    """Within the block, report the progress that the training process writes to the file `live`."""
    over = threading.Event()
    live.unlink(missing_ok=True)

    def follow() -> None:
        last, ended = 0, False
        while not ended:
            ended = over.wait(LOOK_EVERY_S)
            facts = json.loads(read_own(live)) if live.exists() else {}
            if facts and facts["done"] != last:
                last = facts["done"]
                shown = {k: facts[k] for k in ("loss", "tokens_per_s", "eta_s")}
                progress(last, facts["total"], "steps", arm=arm, **shown)

    thread = threading.Thread(target=follow, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _explain(task: job.Job, code: int) -> UserError | StageError:
    if task.failure.exists():
        facts = json.loads(read_own(task.failure))
        kind = UserError if facts["kind"] == "UserError" else StageError
        return kind(facts["message"], facts["remedy"])
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    hint = " (often the system's answer to too little memory)" if code == -9 else ""
    return StageError(
        f"the training process {how}{hint}; its last words are in the output above",
        "run again: it continues from the last saved step",
    )
