"""The transformers Trainer fed with whole optimizer steps: each item is a step's samples, packed into rows here.

Everything around the step is the Trainer's: optimizer, schedule, clipping, DDP and FSDP, saving and restoring.
Not TRL's SFTTrainer: it packs the dataset before batching, so that a step is so many packed rows and no longer the
paper's number of samples, and without packing a row is as long as its samples happen to be.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback

from srt_assets.core.errors import StageError
from srt_assets.core.training.packed import Example, Row, make_row, summed_loss
from srt_assets.core.training.plan import pack

# Written last into a saved state: a process killed while saving leaves a state without it.
WHOLE = "whole"
# A state is four times the weights: saving takes at most this share of the time.
SAVING_SHARE = 0.05


class Steps(Dataset):
    """Optimizer steps as items: the rows of one process, and what the whole step holds."""

    def __init__(
        self, examples: list[Example], steps: list[np.ndarray], budget: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.examples = examples
        self.steps = steps
        self.budget = budget
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> dict[str, Any]:
        chosen = [self.examples[i] for i in self.steps[index]]
        bins = pack([len(e.ids) for e in chosen], self.budget, self.processes)
        mine = bins[self.rank :: self.processes]
        return {
            "rows": [make_row([chosen[i] for i in bin]) for bin in mine],
            "samples": [[chosen[i].sample_id for i in bin] for bin in mine],
            "n_targets": sum(e.n_targets for e in chosen),
            "n_tokens": sum(len(e.ids) for e in chosen),
        }

    def tokens_before(self, index: int) -> int:
        """Tokens of the steps before this one."""
        return sum(len(self.examples[i].ids) for step in self.steps[:index] for i in step)


def only(items: list) -> Any:
    """Collator: a batch is one step."""
    return items[0]


class PackedTrainer(Trainer):
    """Trainer whose step sums the loss of all its rows before one update; the loss is per response token."""

    def get_train_dataloader(self) -> DataLoader:
        # Not sharded by accelerate: `Steps` already gives every process its own rows of the same step.
        assert isinstance(self.train_dataset, Steps)
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=only)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        model.train()
        device = self.args.device
        rows: list[Row] = inputs["rows"]
        world = self.args.world_size
        total = torch.zeros((), device=device)
        worst: list[str] = []
        for i, row in enumerate(rows):
            last = i == len(rows) - 1
            # Gradients travel between processes once a step, with the last row.
            with nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = summed_loss(model, row.to(device)) / inputs["n_targets"]
                if not torch.isfinite(loss.detach()):
                    worst = inputs["samples"][i]
                # DDP and FSDP average gradients over processes; the step's loss is a sum over them.
                self.accelerator.backward(loss * world)
            total += loss.detach()
        total = self.accelerator.reduce(total, "sum")
        if not math.isfinite(float(total)):
            self._explode(f"the loss became {float(total)}", gather_object(worst))
        return total

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        # In fp16 the scaler tries scales until one fits, and skips the steps that do not.
        if not self.args.fp16 and not math.isfinite(float(norm)):
            self._explode(f"the gradient's norm became {float(norm)}", [])
        return norm

    def _explode(self, what: str, samples: list[str]) -> None:
        """Before the optimizer moves: what is saved now are the last good weights."""
        if not (Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}" / WHOLE).exists():
            self._save_checkpoint(self.model_wrapped, trial=None)
            self.callback_handler.on_save(self.args, self.state, self.control)
        step = self.state.global_step + 1
        assert isinstance(self.train_dataset, Steps)
        batch = [self.train_dataset.examples[i].sample_id for i in self.train_dataset.steps[step - 1]]
        named = samples or batch
        raise StageError(
            f"{what} in step {step} (samples {', '.join(named[:8])}{', …' if len(named) > 8 else ''}); "
            f"training stopped, the last good state is kept in {self.args.output_dir}",
            "lower training.learning_rate, set student.dtype to fp32 if it was fp16, or look at those samples "
            "(srt explain SAMPLE_ID)",
        )

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()


class Keeper(TrainerCallback):
    """Writes the curve a line a step, tells the listener, and has states saved by the clock and when asked to stop.

    `listener(step, steps, facts)`; `stop_asked()` is looked at after every step, on every process; `at_start()` is
    called before the first step, when the model lies where it will be trained.
    """

    def __init__(
        self,
        steps: Steps,
        curve: Path,
        save_every_s: float,
        listener: Callable[[int, int, dict[str, float]], None],
        stop_asked: Callable[[], bool],
        synchronized: Callable[[bool], bool],
        at_start: Callable[[], None],
    ) -> None:
        self.steps = steps
        self.curve = curve
        self.save_every_s = save_every_s
        self.listener = listener
        self.stop_asked = stop_asked
        self.synchronized = synchronized
        self.at_start = at_start
        self.stopped = False
        self.seconds = 0.0
        self.tokens = 0
        self._here = 0
        self._stepped_at = time.monotonic()

    def on_train_begin(self, args, state, control, **_):
        self.at_start()
        self.tokens = self.steps.tokens_before(state.global_step)
        if args.process_index == 0:
            self._cut_curve(state.global_step)
        self._began = self._saved_at = self._mark = time.monotonic()
        self._pause = self.save_every_s

    def _cut_curve(self, step: int) -> None:
        """Lines of steps that were made after the state we continue from, and are made again."""
        old = self.curve.read_text().splitlines() if self.curve.exists() else []
        kept = [line for line in old if (facts := _parse(line)) and facts["step"] <= step]
        self.curve.write_text("".join(line + "\n" for line in kept))
        self.seconds = sum(json.loads(line)["seconds"] for line in kept)

    def on_step_end(self, args, state, control, **_):
        control.should_log = True
        now = time.monotonic()
        due = self.synchronized(now - self._saved_at >= self._pause)
        self.stopped = self.synchronized(self.stop_asked())
        control.should_save = state.global_step < state.max_steps and (due or self.stopped)
        if self.stopped:
            control.should_training_stop = True
        self._stepped_at = now

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in (logs or {}) or args.process_index != 0:
            return
        now = time.monotonic()
        took, self._mark = now - self._mark, now
        step = state.global_step
        tokens = sum(len(self.steps.examples[i].ids) for i in self.steps.steps[step - 1])
        self.tokens += tokens
        self.seconds += took
        self._here += tokens
        speed = self._here / (now - self._began)
        facts = {
            "step": step,
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs["grad_norm"],
            "tokens": self.tokens,
            "seconds": round(took, 4),
        }
        with self.curve.open("a") as file:
            file.write(json.dumps(facts) + "\n")
        left = self.steps.tokens_before(len(self.steps)) - self.tokens
        self.listener(step, state.max_steps, {**facts, "tokens_per_s": speed, "eta_s": left / speed})

    def on_save(self, args, state, control, **_):
        # The Trainer waited for every process's random state: from here on the directory can be continued from.
        if args.process_index == 0:
            directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            sync(directory)
            (directory / WHOLE).touch()
        self._saved_at = time.monotonic()
        took = self._saved_at - self._stepped_at
        self._pause = max(self.save_every_s, took / SAVING_SHARE) if self.save_every_s else 0.0


def sync(directory: Path) -> None:
    """Have every file of a directory on the disk itself: power may fail after the next rename."""
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def last_state(directory: Path) -> Path | None:
    """The newest state that was saved whole."""
    whole = [p.parent for p in directory.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def drop_torn_states(directory: Path) -> None:
    """Delete states that were saved by half: the limit on their number would count them and delete a whole one."""
    for state in directory.glob("checkpoint-*"):
        if not (state / WHOLE).exists():
            shutil.rmtree(state)


def _parse(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:  # the process died while it wrote this line
        return None
