"""One training from a job file to a finished checkpoint directory: what runs inside the training process."""

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
from accelerate import PartialState
from transformers import PrinterCallback, set_seed
from transformers.utils import logging as hf_logging

from srt_assets.core.errors import StageError, UserError, disk_full
from srt_assets.core.files import read_own
from srt_assets.core.hashing import file_sha256
from srt_assets.core.locks import replace_text
from srt_assets.core.students.loading import load_tokenizer
from srt_assets.core.training import card, data, memory, model, saved
from srt_assets.core.training.arguments import arguments
from srt_assets.core.training.job import RECORD, Job
from srt_assets.core.training.keeper import Keeper
from srt_assets.core.training.packed import mean_loss, packing_is_exact
from srt_assets.core.training.plan import count_steps, row_bound, step_samples
from srt_assets.core.training.samples import shortest
from srt_assets.core.training.states import ASIDE, drop_torn_states, last_state, sync
from srt_assets.core.training.trainer import PackedTrainer, Steps

# Tokens a forward pass. The block mask makes attention quadratic in it; on a CPU gains end near 1,000 tokens.
CPU_BUDGET = 1024
GPU_BUDGET = 4096
# What torch says when it cannot write a state: never why.
_WRITES = ("PytorchStreamWriter failed", "iostream error", "unexpected pos")
_NEARLY_NONE = 64 << 20
# Losses before the first step, for a training that is continued.
BEFORE = "before.json"
VERSIONS = ("srt-assets", "torch", "transformers", "accelerate", "peft")

Listener = Callable[[int, int, dict[str, float]], None]


class Stopped(Exception):
    """The process was asked to stop; its state is saved."""


def train(job: Job, listener: Listener, say: Callable[[str], None], stop_asked: Callable[[], bool]) -> None:
    """Train and leave the finished checkpoint in `job.final`; continues from the last saved state if there is one.

    `listener` hears every step, `say` a few sentences. Raises UserError or StageError with the remedy, `Stopped` after
    saving its state when `stop_asked()` became true.
    """

    def stop_if_asked() -> None:
        if stop_asked():
            raise Stopped

    began = time.monotonic()
    hf_logging.disable_progress_bar()
    device = model.pick_device(job)
    model.check_processes(job, device)
    dtype = model.pick_dtype(job, device)
    args = arguments(job, device, dtype)
    rank, processes = args.process_index, args.world_size
    set_seed(job.seed)
    tokenizer = load_tokenizer(job.student_path)
    stored = saved.stored_dtype(job.student_path)
    student: Any = model.load_model(job)
    window = min(job.max_length, getattr(student.config, "max_position_embeddings", None) or job.max_length)
    vocabulary = len(student.get_input_embeddings().weight)
    meet = PartialState().wait_for_everyone
    samples = data.load(job, tokenizer, window, vocabulary, rank, processes, meet, stop_if_asked)
    model.stop_on(student, samples.end[-1], tokenizer.eos_token_id)
    steps = count_steps(len(samples.train), job.batch_size, job.epochs, job.steps)
    if job.method == "lora":
        student = model.add_adapters(student, job)
    # Rounded down: the first warm-up step has learning rate 0, and in a training of a few steps every step counts.
    args.warmup_steps = int(job.warmup_ratio * steps)
    budget = job.token_budget or (CPU_BUDGET if device.type == "cpu" else GPU_BUDGET)
    budget = _check_packing(student, samples, dtype, budget, say)
    batches = step_samples(len(samples.train), job.batch_size, steps, job.seed)
    plan = Steps(samples.train, batches, budget, rank, processes)
    row = row_bound(samples.train.lengths, samples.train.n_targets, job.batch_size, budget)
    if memory.must_checkpoint(student, row, job.gradient_checkpointing, dtype, device, args):
        args.activation_checkpointing = True
        args.activation_checkpointing_kwargs = {"use_reentrant": False}
    if rank == 0:
        drop_torn_states(job.states)
    state = last_state(job.states)

    def measure(now: Any) -> None:
        sets = {"eval_loss": samples.held_out, "eval_original_loss": samples.held_out_original}
        before = {name: mean_loss(now, rows, budget, rank, processes) for name, rows in sets.items() if rows}
        if rank == 0:
            replace_text(job.directory / BEFORE, json.dumps(before))

    if not state and not args.fsdp:
        # In the precision it is stored in, as its successor will be measured.
        with saved.as_stored(student.to(args.device), stored):
            measure(student)

    def at_start() -> None:
        if not state and args.fsdp:  # no process holds the whole of it
            with trainer.compute_loss_context_manager():
                measure(trainer.model)

    keeper = Keeper(plan, job.curve, job.save_every_s, listener, stop_asked, at_start)
    trainer = PackedTrainer(model=student, args=args, train_dataset=plan, callbacks=[keeper])
    trainer.remove_callback(PrinterCallback)
    if args.fsdp and not trainer.is_fsdp_enabled:
        raise UserError("accelerate shares weights between GPUs only", 'set training.sharding = "auto"')
    say(
        f"{len(samples.train)} samples to train on, {len(samples.held_out)} held out, {steps} steps of up to "
        f"{job.batch_size} samples on {processes} x {device.type} in {dtype}"
        + (f"; continuing from step {state.name.rpartition('-')[2]}" if state else "")
    )
    result = trainer.train(resume_from_checkpoint=str(state) if state else None)
    if keeper.stopped and result.global_step < steps:
        raise Stopped
    # Sharded weights are gathered by all processes together; the rest is the work of one, however long it takes.
    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    if rank != 0:
        return
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if weights is not None:
        trained = saved.gathered(job, weights, trained)
        weights = None
    assert trainer.optimizer is not None
    trainer.optimizer.state.clear()  # twice the weights, and never needed again
    facts = {
        **_facts(job, samples, keeper, tokenizer),
        "window": window,
        "steps": result.global_step,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "dtype": dtype,
        "processes": processes,
        "sharded": trainer.is_fsdp_enabled,
        "token_budget": budget,
    }
    aside = job.directory / ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    say("saving the trained model, and measuring it as it was saved")
    facts |= saved.save(trained, tokenizer, job, aside, samples, budget, args.device)
    facts |= {"process_seconds": time.monotonic() - began, "peak_memory_bytes": memory.peak_bytes(device)}
    _finish(job, aside, facts)


def _facts(job: Job, samples: data.Data, keeper: Keeper, tokenizer) -> dict[str, Any]:
    """What the record says of the data and of the steps."""
    curve = [json.loads(line) for line in read_own(job.curve).splitlines()]
    before = json.loads(read_own(job.directory / BEFORE))
    return {
        "n_train": len(samples.train),
        "n_held_out": len(samples.held_out),
        "left_out": samples.left_out,
        "answers_end_with": tokenizer.decode(list(samples.end)),
        "prompt_note": samples.prompt_note,
        "tokens": keeper.tokens,
        "train_loss_first": curve[0]["loss"],
        "train_loss_final": curve[-1]["loss"],
        **{f"{name}_before": loss for name, loss in before.items()},
        "tokens_per_s": keeper.tokens / keeper.seconds,
        "seconds": keeper.seconds,
        "versions": {name: version(name) for name in VERSIONS},
    }


def _finish(job: Job, aside: Path, facts: dict[str, Any]) -> None:
    """Put the record, the curve and the card beside the saved model, and make it the finished one."""
    asked = asdict(job)
    for place in ("work", "student_path"):  # where it happened to lie says nothing about the training
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


def _check_packing(student, samples: data.Data, dtype: str, budget: int, say: Callable[[str], None]) -> int:
    """The token budget, or 1 (every sample alone) for an architecture that would let samples see each other."""
    everything = [*shortest(samples.train, 2), *shortest(samples.held_out, 2)]
    if len(everything) < 2 or packing_is_exact(student, everything, "fp32"):
        return budget
    say(f"{type(student).__name__} does not keep packed samples apart; each sample gets a forward pass of its own")
    return 1


def exhausted(error: BaseException, place: Path | None = None) -> StageError | None:
    """Memory or disk that ran out, in the many shapes the libraries give it; None if `error` is something else.

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
