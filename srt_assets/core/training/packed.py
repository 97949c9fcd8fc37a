"""Packs samples into one row without padding, and computes the summed loss of its response tokens.

Position ids restart at 0 with every sample. From them transformers builds a block-diagonal causal mask (or the sequence
bounds of a flash kernel), so that no sample attends to another. Logits are computed only at positions that predict a
response token, which saves time and memory for the prompt's positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from srt_assets.core.training.plan import pack
from srt_assets.core.training.samples import Example, lengths, shortest

# Relative tolerance. Two orders of summation differ by rounding only; attention across samples differs by far more.
PROBE_TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 1e-2}


@dataclass(frozen=True)
class Row:
    """One forward pass: ids and positions [1, tokens]; the positions `keep` [targets] predict `targets` [targets]."""

    ids: torch.Tensor
    positions: torch.Tensor
    keep: torch.Tensor
    targets: torch.Tensor

    @property
    def n_targets(self) -> int:
        return self.targets.numel()

    def to(self, device: torch.device) -> "Row":
        return Row(self.ids.to(device), self.positions.to(device), self.keep.to(device), self.targets.to(device))


def make_row(examples: Sequence[Example]) -> Row:
    """Concatenate samples. Without samples: one token and no target, for a process without samples in this step."""
    if not examples:
        zero = torch.zeros(1, 1, dtype=torch.long)
        return Row(zero, zero, torch.zeros(1, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    offsets = np.cumsum([0, *(len(e.ids) for e in examples[:-1])])
    keep = [o + np.arange(e.start - 1, len(e.ids) - 1) for o, e in zip(offsets, examples, strict=True)]
    return Row(
        ids=torch.from_numpy(np.concatenate([e.ids for e in examples]).astype(np.int64))[None],
        positions=torch.from_numpy(np.concatenate([np.arange(len(e.ids)) for e in examples]))[None],
        keep=torch.from_numpy(np.concatenate(keep)),
        targets=torch.from_numpy(np.concatenate([e.ids[e.start :] for e in examples]).astype(np.int64)),
    )


def summed_loss(model: nn.Module, row: Row) -> torch.Tensor:
    """Sum of the negative log-likelihoods of the row's targets (nats, float32), differentiable."""
    output = model(input_ids=row.ids, position_ids=row.positions, logits_to_keep=row.keep, use_cache=False)
    logits = output.logits[0]
    if len(logits) != len(row.keep):  # some architectures ignore `logits_to_keep`
        logits = logits[row.keep]
    logits = logits.float()
    if not row.n_targets:
        return logits.sum() * 0.0
    return F.cross_entropy(logits, row.targets, reduction="sum")


@torch.no_grad()
def mean_loss(model: nn.Module, examples: Sequence[Example], budget: int, rank: int = 0, processes: int = 1) -> float:
    """Mean loss per response token over all examples (nats), shared between processes; leaves the model as it was."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64)
    bins = pack(lengths(examples).tolist(), budget, processes)
    for bin in bins[rank::processes]:
        row = make_row([examples[i] for i in bin]).to(device)
        totals += torch.tensor([float(summed_loss(model, row)), row.n_targets], dtype=torch.float64)
    model.train(training)
    if processes > 1:
        shared = totals.to(device)
        torch.distributed.all_reduce(shared)
        totals = shared.cpu()
    return float(totals[0] / totals[1])


@torch.no_grad()
def packing_is_exact(model: nn.Module, examples: Sequence[Example], dtype: str) -> bool:
    """Whether two samples packed into one row have the same losses as alone, so that packing is allowed."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    short = shortest(examples, 2)
    together = float(summed_loss(model, make_row(short).to(device)))
    alone = sum(float(summed_loss(model, make_row([e]).to(device))) for e in short)
    model.train(training)
    return abs(together - alone) <= PROBE_TOLERANCE[dtype] * max(1.0, abs(alone))
