"""Runs one training inside the training process, from the job to the finished checkpoint directory."""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback
from transformers.utils import logging as hf_logging

from srt_assets.core.errors import StageError, UserError, disk_full
from srt_assets.core.files import read_own
from srt_assets.core.hashing import file_sha256
from srt_assets.core.locks import replace_text
from srt_assets.core.training import card, memory, saved
from srt_assets.core.training.job import RECORD, Job
from srt_assets.core.training.keeper import Keeper, Listener
from srt_assets.core.training.packed import mean_loss
from srt_assets.core.training.prepare import Prepared, prepare
from srt_assets.core.training.states import ASIDE, sync
from srt_assets.core.training.trainer import PackedTrainer

# torch's messages when it cannot write a state; they do not say why.
_WRITES = ("PytorchStreamWriter failed", "iostream error", "unexpected pos")
_NEARLY_NONE = 64 << 20
# File with the losses before the first step, for a training that is continued.
BEFORE = "before.json"
VERSIONS = ("srt-assets", "torch", "transformers", "accelerate", "peft")


class Stopped(Exception):
    """The process was asked to stop; its state is saved."""


def train(job: Job, listener: Listener, say: Callable[[str], None], stop_asked: Callable[[], bool]) -> None:
    """Train and write the finished checkpoint to `job.final`; continues from the last saved state if there is one.

    `listener` is called after every step, `say` with a few sentences for the log. Raises UserError, StageError, or
    `Stopped` after saving a state when `stop_asked()` has become true.
    """

    def stop_if_asked() -> None:
        if stop_asked():
            raise Stopped

    began = time.monotonic()
    hf_logging.disable_progress_bar()
    ready = prepare(job, say, stop_if_asked)
    trainer, keeper = _trainer(ready, listener, stop_asked)
    say(ready.told)
    result = trainer.train(resume_from_checkpoint=str(ready.state) if ready.state else None)
    if keeper.stopped and result.global_step < len(ready.plan):
        raise Stopped
    trained = _trained(ready, trainer)
    if trained is None:
        return
    device, samples = ready.device, ready.samples
    facts = {
        **_facts(ready, keeper),
        "steps": result.global_step,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "sharded": trainer.is_fsdp_enabled,
    }
    aside = job.directory / ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    say("saving the trained model, and measuring it as it was saved")
    facts |= saved.save(trained, ready.tokenizer, job, aside, samples, ready.budget, ready.args.device)
    facts |= {"process_seconds": time.monotonic() - began, "peak_memory_bytes": memory.peak_bytes(device)}
    _finish(job, aside, facts)


def _trainer(ready: Prepared, listener: Listener, stop_asked: Callable[[], bool]) -> tuple[PackedTrainer, Keeper]:
    """The Trainer with its keeper. Measures the held-out losses before the first step; if sharded, at its start."""
    job, args, student = ready.job, ready.args, ready.student
    sets = {"eval_loss": ready.samples.held_out, "eval_original_loss": ready.samples.held_out_original}

    def measure(now: Any) -> None:
        of_all = (ready.budget, args.process_index, args.world_size)
        before = {name: mean_loss(now, rows, *of_all) for name, rows in sets.items() if rows}
        if args.process_index == 0:
            replace_text(job.directory / BEFORE, json.dumps(before))

    def at_start() -> None:
        if not ready.state and args.fsdp:  # no process holds the whole model
            with trainer.compute_loss_context_manager():
                measure(trainer.model)

    if not ready.state and not args.fsdp:
        # In the stored precision, in which the finetuned model will be measured too.
        with saved.as_stored(student.to(args.device), saved.stored_dtype(job.student_path)):
            measure(student)
    keeper = Keeper(job, ready.plan, listener, stop_asked, at_start)
    trainer = PackedTrainer(model=student, args=args, train_dataset=ready.plan, callbacks=[keeper])
    trainer.remove_callback(PrinterCallback)
    if args.fsdp and not trainer.is_fsdp_enabled:
        raise UserError("accelerate shares weights between GPUs only", 'set training.sharding = "auto"')
    return trainer, keeper


def _trained(ready: Prepared, trainer: PackedTrainer) -> Any:
    """The whole trained model on the first process, None on the others."""
    # All processes together gather sharded weights; everything after that is done by one process.
    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    if ready.args.process_index != 0:
        return None
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    assert trainer.optimizer is not None
    trainer.optimizer.state.clear()  # twice the size of the weights, and no longer needed
    return trained if weights is None else saved.gathered(ready.job, weights, trained)


def _facts(ready: Prepared, keeper: Keeper) -> dict[str, Any]:
    """The facts about data and steps for the record."""
    job, samples = ready.job, ready.samples
    curve = [json.loads(line) for line in read_own(job.curve).splitlines()]
    before = json.loads(read_own(job.directory / BEFORE))
    return {
        "n_train": len(samples.train),
        "n_held_out": len(samples.held_out),
        "left_out": samples.left_out,
        "answers_end_with": ready.tokenizer.decode(list(samples.end)),
        "prompt_note": samples.prompt_note,
        "tokens": keeper.tokens,
        "train_loss_first": curve[0]["loss"],
        "train_loss_final": curve[-1]["loss"],
        **{f"{name}_before": loss for name, loss in before.items()},
        "tokens_per_s": keeper.tokens / keeper.seconds,
        "seconds": keeper.seconds,
        **{name: getattr(ready, name) for name in ("window", "dtype")},
        "processes": ready.args.world_size,
        "token_budget": ready.budget,
        "versions": {name: version(name) for name in VERSIONS},
    }


def _finish(job: Job, aside: Path, facts: dict[str, Any]) -> None:
    """Write record, curve and card beside the saved model, and rename the directory to the finished one."""
    asked = asdict(job)
    for place in ("work", "student_path"):  # local paths say nothing about the training
        asked.pop(place)
    asked["steps_asked"] = asked.pop("steps")
    now = datetime.now(UTC).replace(tzinfo=None).isoformat()
    record = {**asked.pop("facts"), **asked, **facts, "finished_at": now}
    record["sums"] = {path.name: file_sha256(path) for path in sorted(aside.iterdir()) if path.is_file()}
    (aside / RECORD).write_text(json.dumps(record, indent=1))
    shutil.copy(job.curve, aside / job.curve.name)
    (aside / "README.md").write_text(card.write(record))
    sync(aside)
    aside.replace(job.final)


def exhausted(error: BaseException, place: Path | None = None) -> StageError | None:
    """A StageError if memory or disk ran out, in any of the libraries' forms; None for other errors.

    `place`: the folder that is written to.
    """
    text = str(error)
    first = text.splitlines()[0] if text else type(error).__name__
    if place and any(words in text for words in _WRITES) and shutil.disk_usage(place).free < _NEARLY_NONE:
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if full := disk_full(error, place):
        return StageError(full.message, f"{full.remedy}; it continues from the last state that was saved")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return StageError(
            f"the training ran out of memory: {first}",
            'lower student.token_budget or training.max_length, or set training.method = "lora"; '
            "running again continues from the last saved step",
        )
    return None
