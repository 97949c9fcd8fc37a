"""Scoring: the prompts a student sees, the losses its model computes, and the table `student_scores`.

This file is the interface for the rest of the program: the version of the scoring code, devices and precision, and the
function that scores records. It stores nothing and loads no torch. Known and missing scores are in `store.py`. Policies
do not belong in this folder: decisions are in `selection`. Training takes prompts and token ids from here.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from srt_assets.core.progress import Progress
from srt_assets.core.scoring import chat
from srt_assets.core.scoring.encoding import Texts
from srt_assets.core.scoring.store import OUT_OF_MEMORY, Way
from srt_assets.core.students.checkpoints import StudentInfo
from srt_assets.core.tables import PASSES
from srt_assets.settings import Settings

if TYPE_CHECKING:
    from srt_assets.core.scoring.chunks import Scored, Spec

log = logging.getLogger(__name__)

# Part of every row. Change it when the same texts get other numbers; everything is then scored again.
VERSION = "2"
# For students that cap their logits: earlier versions ignored the cap where its effect was small.
VERSION_CAPPED = "3"
# For students whose chat template writes another prompt before an answer than its generation prompt, which earlier
# versions used.
VERSION_PROMPTED = "4"
# Precision by its name in the settings: its name in torch and in the rows.
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
EXACT = "fp32"

# (sample_id, content_key, texts) of a candidate.
Record = tuple[str, str, Texts]


def max_length(settings: Settings, info: StudentInfo) -> int:
    """Longest sequence in tokens: the setting, or the student's number of positions if that is smaller."""
    return min(settings.student.max_length, info.max_positions or settings.student.max_length)


def version(settings: Settings, info: StudentInfo) -> str:
    """The version of the scoring code for this student. UserError if its chat template cannot be used."""
    if settings.student.template == "chat" and not chat.of_student(info.slug, info.path, info.fingerprint).usual:
        return VERSION_PROMPTED
    return VERSION_CAPPED if info.caps_logits else VERSION


def way(settings: Settings, info: StudentInfo, dtype: str) -> Way:
    """The conditions under which a stored score counts. `dtype` as in the settings."""
    # "auto" accepts scores of any precision, and scores in full precision are always accepted.
    dtypes = DTYPES.values() if dtype == "auto" else dict.fromkeys((DTYPES[dtype], DTYPES[EXACT]))
    return Way(
        student_fingerprint=info.fingerprint,
        **settings.student.model_dump(include={"template", "protocol"}),
        max_length=max_length(settings, info),
        scoring_version=version(settings, info),
        dtypes=tuple(dtypes),
    )


def prepare(settings: Settings, info: StudentInfo, home: Path, dtype: str) -> tuple["Spec", list[str]]:
    """The workers' parameters and devices. `auto` is resolved here, so that all workers use the same values.

    UserError for a device that this machine does not have.
    """
    from srt_assets.core.scoring import devices
    from srt_assets.core.scoring.chunks import Spec

    chosen = settings.student
    resolved = devices.resolve_dtype(dtype, chosen.devices)
    names = devices.resolve_devices(chosen.devices, info.n_parameters * resolved.itemsize)
    spec = Spec(
        path=info.path,
        max_length=max_length(settings, info),
        dtype=str(resolved).removeprefix("torch."),
        **chosen.model_dump(include={"template", "protocol", "token_budget"}),
        cores=devices.cores_per_worker(names),
        home=home,
        fingerprint=info.fingerprint,
    )
    return spec, names


def score(
    spec: "Spec", names: list[str], records: Iterable[Record], tick: Callable[[int], object]
) -> "Iterator[Scored]":
    """Score records on the devices, in chunks of adaptive size. Calls `tick(tokens)` after each forward pass.

    StageError if a worker dies, UserError if the student cannot be loaded.
    """
    from srt_assets.core.scoring import workers  # heavy: loads torch
    from srt_assets.core.scoring.pace import Pace, chunks

    pace = Pace()
    for scored in workers.score_chunks(spec, names, chunks(records, pace), tick):
        pace.learn(scored.characters, scored.seconds)
        yield scored


def score_in_fp32(
    settings: Settings, info: StudentInfo, home: Path, records: Iterable[Record], n: int, progress: Progress
) -> "Iterator[Scored]":
    """Score the candidates of these `n` records in fp32. Errors as `score`.

    A candidate that does not fit into memory in fp32 is left out and keeps its score in low precision.
    """
    if not n:
        return
    started, done = time.monotonic(), 0

    def report(tokens: int = 0) -> None:
        facts = {"eta_s": (n - done) * (time.monotonic() - started) / done} if done else {}
        progress(done, n, "records", dtype=DTYPES[EXACT], **facts)

    for scored in score(*prepare(settings, info, home, EXACT), records, report):
        short = [r for r in scored.rows if OUT_OF_MEMORY in (r[f"status_{name}"] for name in PASSES)]
        if short:
            log.warning("%d candidates keep their scores in low precision: no memory for fp32", len(short))
            scored.rows = [row for row in scored.rows if row not in short]
        done += len(scored.samples)
        yield scored
        report()
