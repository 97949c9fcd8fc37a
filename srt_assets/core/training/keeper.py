"""Writes the loss curve of a running training, one line per step, and has states saved at intervals and on a stop."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainingArguments

from srt_assets.core.files import read_own
from srt_assets.core.locks import replace_text
from srt_assets.core.training.job import Job
from srt_assets.core.training.states import WHOLE, sync
from srt_assets.core.training.trainer import Steps

# Saving states takes at most this share of the time, because a state has four times the size of the weights.
SAVING_SHARE = 0.05

Listener = Callable[[int, int, dict[str, float]], None]


@dataclass(eq=False)
class Keeper(TrainerCallback):
    """Writes the curve, calls the listener, and has states saved at intervals and when asked to stop.

    `listener(step, steps, facts)` is called after every step; `stop_asked()` too, on every process. `at_start()` is
    called before the first step, when the model is on its device.
    """

    job: Job
    steps: Steps
    listener: Listener
    stop_asked: Callable[[], bool]
    at_start: Callable[[], None]
    stopped: bool = False
    seconds: float = 0.0
    tokens: int = 0

    def on_train_begin(self, args, state, control, **_):
        self.at_start()
        self.tokens = self.steps.tokens_before(state.global_step)
        # Computed once, because it reads the lengths of all records.
        self._all = self.steps.tokens_before(len(self.steps))
        if args.process_index == 0:
            self._cut_curve(state.global_step)
        self._began = self._saved_at = self._stepped_at = self._mark = time.monotonic()
        self._here = 0
        self._pause = self.job.save_every_s

    def _cut_curve(self, step: int) -> None:
        """Remove the lines of steps after the state that the training continues from; these steps are repeated."""
        old = read_own(self.job.curve).splitlines() if self.job.curve.exists() else []
        kept = [line for line in old if (facts := _parse(line)) and facts["step"] <= step]
        replace_text(self.job.curve, "".join(line + "\n" for line in kept))
        self.seconds = sum(json.loads(line)["seconds"] for line in kept)

    def on_step_end(self, args, state, control, **_):
        control.should_log = True
        now = time.monotonic()
        due = _any(now - self._saved_at >= self._pause, args)
        self.stopped = _any(self.stop_asked(), args)
        control.should_save = state.global_step < state.max_steps and (due or self.stopped)
        control.should_training_stop |= self.stopped
        self._stepped_at = now

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in (logs or {}) or args.process_index != 0:
            return
        now = time.monotonic()
        took, self._mark = now - self._mark, now
        step = state.global_step
        tokens = self.steps.tokens_of(step - 1)
        self.tokens += tokens
        self.seconds += took
        self._here += tokens
        speed = self._here / (now - self._began)
        facts = {
            "step": step,
            **{name: logs[name] for name in ("loss", "learning_rate", "grad_norm")},
            "tokens": self.tokens,
            "seconds": round(took, 4),
        }
        with self.job.curve.open("a") as file:
            file.write(json.dumps(facts) + "\n")
        left = self._all - self.tokens
        self.listener(step, state.max_steps, {**facts, "tokens_per_s": speed, "eta_s": left / speed})

    def on_save(self, args, state, control, **_):
        # The Trainer has waited for the random state of every process, so the directory is complete now.
        if args.process_index == 0:
            directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            sync(directory)
            sync(self.job.curve)  # lines before this state are not written again
            (directory / WHOLE).touch()
        self._saved_at = time.monotonic()
        took = self._saved_at - self._stepped_at
        self._pause = max(self.job.save_every_s, took / SAVING_SHARE) if self.job.save_every_s else 0.0


def _any(flag: bool, args: TrainingArguments) -> bool:
    """True on every process if it is true on one."""
    if args.world_size == 1:
        return flag
    shared = torch.tensor(float(flag), device=args.device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return bool(shared > 0)


def _parse(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:  # the process died while it wrote this line
        return None
