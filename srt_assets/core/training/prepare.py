"""Prepares a training: loads student and samples, plans the steps, checks the memory. The steps are in `train.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments, set_seed

from srt_assets.core.students.loading import load_tokenizer
from srt_assets.core.training import data, memory, model, saved
from srt_assets.core.training.arguments import arguments
from srt_assets.core.training.job import Job
from srt_assets.core.training.packed import packing_is_exact
from srt_assets.core.training.plan import count_steps, row_bound, step_samples
from srt_assets.core.training.samples import shortest
from srt_assets.core.training.states import drop_torn_states, last_state
from srt_assets.core.training.trainer import Steps

# Tokens per forward pass. Attention is quadratic in them; on a CPU more than about 1,000 tokens bring no gain.
CPU_BUDGET = 1024
GPU_BUDGET = 4096


@dataclass(eq=False)
class Prepared:
    """A prepared training. `window`: longest sample, `budget`: largest forward pass, both in tokens.

    `state`: the directory of the saved state that it continues from, None for a new training.
    """

    job: Job
    device: torch.device
    dtype: str
    args: TrainingArguments
    tokenizer: Any
    student: Any
    samples: data.Data
    window: int
    budget: int
    plan: Steps
    state: Path | None

    @property
    def told(self) -> str:
        """A sentence about the training for the log."""
        continued = f"; continuing from step {self.state.name.rpartition('-')[2]}" if self.state else ""
        return (
            f"{len(self.samples.train)} samples to train on, {len(self.samples.held_out)} held out, "
            f"{len(self.plan)} steps of up to {self.job.batch_size} samples on "
            f"{self.args.world_size} x {self.device.type} in {self.dtype}{continued}"
        )


def prepare(job: Job, say: Callable[[str], None], stop_if_asked: Callable[[], None]) -> Prepared:
    """Load the student and the samples, plan the steps, and choose the token budget and checkpointing."""
    device = model.pick_device(job)
    model.check_processes(job, device)
    dtype = model.pick_dtype(job, device)
    args = arguments(job, device, dtype)
    rank, processes = args.process_index, args.world_size
    set_seed(job.seed)
    tokenizer = load_tokenizer(job.student_path)
    saved.stored_dtype(job.student_path)  # refuse now, not after the last step, a precision that cannot be saved
    student: Any = model.load_model(job)
    window = min(job.max_length, getattr(student.config, "max_position_embeddings", None) or job.max_length)
    vocabulary = len(student.get_input_embeddings().weight)
    meet = PartialState().wait_for_everyone
    samples = data.load(job, tokenizer, window, vocabulary, rank, processes, meet, stop_if_asked)
    model.stop_on(student, samples.end[-1], tokenizer.eos_token_id)
    steps = count_steps(len(samples.train), job.batch_size, job.epochs, job.steps)
    if job.method == "lora":
        student = model.add_adapters(student, job)
    # Rounded down: the first warm-up step has learning rate 0, which a training of a few steps cannot afford.
    args.warmup_steps = int(job.warmup_ratio * steps)
    budget = job.token_budget or (CPU_BUDGET if device.type == "cpu" else GPU_BUDGET)
    budget = _check_packing(student, samples, budget, say)
    batches = step_samples(len(samples.train), job.batch_size, steps, job.seed)
    plan = Steps(samples.train, batches, budget, rank, processes)
    row = row_bound(samples.train.lengths, samples.train.n_targets, job.batch_size, budget)
    if memory.must_checkpoint(student, row, job.gradient_checkpointing, dtype, device, args):
        args.activation_checkpointing = True
        args.activation_checkpointing_kwargs = {"use_reentrant": False}
    if rank == 0:
        drop_torn_states(job.states)
    state = last_state(job.states)
    return Prepared(job, device, dtype, args, tokenizer, student, samples, window, budget, plan, state)


def _check_packing(student, samples: data.Data, budget: int, say: Callable[[str], None]) -> int:
    """The token budget, or 1 (every sample alone) for an architecture in which packed samples attend to each other."""
    everything = [*shortest(samples.train, 2), *shortest(samples.held_out, 2)]
    if len(everything) < 2 or packing_is_exact(student, everything, "fp32"):
        return budget
    say(f"{type(student).__name__} does not keep packed samples apart; each sample gets a forward pass of its own")
    return 1
