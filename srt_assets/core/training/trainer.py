"""The transformers Trainer with whole optimizer steps as items: each item holds a step's samples, packed into rows.

The Trainer does everything around the step: optimizer, schedule, clipping, DDP and FSDP, saving and restoring. TRL's
SFTTrainer is not used, because it packs the dataset before batching: a step would then have a number of packed rows
instead of the paper's number of samples, and without packing a row would be as long as its samples.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer

from srt_assets.core.errors import StageError
from srt_assets.core.training.packed import Row, make_row, summed_loss
from srt_assets.core.training.plan import pack
from srt_assets.core.training.samples import Example, lengths
from srt_assets.core.training.states import WHOLE


@dataclass(eq=False)
class Steps(Dataset):
    """Optimizer steps as items: the rows of this process, and the number of targets of the whole step."""

    examples: Sequence[Example]
    steps: Sequence[np.ndarray]
    budget: int
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        self._lengths = lengths(self.examples)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> dict[str, Any]:
        chosen = [self.examples[int(i)] for i in self.steps[index]]
        bins = pack([len(e.ids) for e in chosen], self.budget, self.processes)
        mine = bins[self.rank :: self.processes]
        return {
            "rows": [make_row([chosen[i] for i in bin]) for bin in mine],
            "samples": [[chosen[i].sample_id for i in bin] for bin in mine],
            "n_targets": sum(e.n_targets for e in chosen),
        }

    def tokens_before(self, index: int) -> int:
        """Tokens of the steps before this one."""
        return sum(map(self.tokens_of, range(index)))

    def tokens_of(self, index: int) -> int:
        return int(self._lengths[self.steps[index]].sum(dtype=np.int64))


class PackedTrainer(Trainer):
    """A Trainer whose step sums the losses of all its rows before one update. The loss is per response token."""

    def get_train_dataloader(self) -> DataLoader:
        # Not sharded by accelerate: `Steps` already gives every process its own rows of the same step.
        assert isinstance(self.train_dataset, Steps)
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=itemgetter(0))

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        model.train()
        device = self.args.device
        rows: list[Row] = inputs["rows"]
        world = self.args.world_size
        total = torch.zeros((), device=device)
        worst: list[str] = []
        for i, row in enumerate(rows):
            last = i == len(rows) - 1
            # Processes exchange gradients once per step, with the last row.
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
        """Stop with a StageError. Saves a state first: the optimizer has not changed the weights in this step yet."""
        if not (Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}" / WHOLE).exists():
            self._save_checkpoint(self.model_wrapped, trial=None)
            self.callback_handler.on_save(self.args, self.state, self.control)
        step = self.state.global_step + 1
        assert isinstance(self.train_dataset, Steps)
        named = samples or [self.train_dataset.examples[int(i)].sample_id for i in self.train_dataset.steps[step - 1]]
        raise StageError(
            f"{what} in step {step} (samples {', '.join(named[:8])}{', …' if len(named) > 8 else ''}); "
            f"training stopped, the last good state is kept in {self.args.output_dir}",
            "lower training.learning_rate, set student.dtype to fp32 if it was fp16, or look at those samples "
            "(srt explain SAMPLE_ID)",
        )

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
