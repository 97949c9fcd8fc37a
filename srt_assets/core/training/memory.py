"""Estimates the memory of a training before its first step: weights, gradients, optimizer, and one row."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import TrainingArguments

from srt_assets.core.errors import UserError

# Vectors of the hidden size that autograd keeps per layer and token (attention, norms, MLP) without checkpointing.
_KEPT_PER_LAYER = 34
_GB = 1024**3
CGROUP = Path("/sys/fs/cgroup")
# fp32 weights, gradients, and Adam's two moments, for each parameter.
STATE_BYTES = 16
# Share of a device's memory that these may take, so that a forward pass still fits.
FILL = 0.7


@dataclass(frozen=True)
class Need:
    """Bytes. `state`: weights, gradients, Adam's two moments; `row`: activations and logits of one row."""

    state: int
    row: int
    row_checkpointed: int

    def total(self, checkpointed: bool) -> int:
        return self.state + (self.row_checkpointed if checkpointed else self.row)


def estimate(model: nn.Module, row_tokens: int, row_targets: int, value_bytes: int, shards: int = 1) -> Need:
    """Lower estimate for fp32 master weights and Adam; activations in `value_bytes` each, logits in fp32."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    all_weights = sum(p.numel() * p.element_size() for p in model.parameters())
    whole: Any = model.config
    config = getattr(whole, "text_config", None) or whole
    layers, hidden = config.num_hidden_layers, config.hidden_size
    logits = 3 * 4 * row_targets * config.vocab_size
    per_layer = row_tokens * hidden * value_bytes
    return Need(
        state=(all_weights + trained * (4 + 8)) // shards,
        row=logits + per_layer * layers * _KEPT_PER_LAYER,
        row_checkpointed=logits + per_layer * (layers + _KEPT_PER_LAYER),
    )


def available(device: torch.device) -> int:
    """Free bytes on the device, or in this machine's memory for the CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    left = _left_in_container(CGROUP)
    return free if left is None else min(free, left)


def _left_in_container(cgroup: Path) -> int | None:
    """Bytes left below the container's limit, None if it has none. Cached files (as the weights just read) count as
    free, because the kernel drops them when memory is needed.
    """
    limit = cgroup / "memory.max"
    if not limit.exists() or (most := limit.read_text().strip()) == "max":
        return None
    kinds = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    cached = int(kinds.get("active_file", 0)) + int(kinds.get("inactive_file", 0))
    return max(0, int(most) - int((cgroup / "memory.current").read_text()) + cached)


def choose_checkpointing(need: Need, free: int, wish: str, weights_loaded: int) -> bool:
    """Whether to recompute activations. UserError, before any step, if the training cannot fit either way.

    `wish`: auto | always | never. `weights_loaded`: bytes of the weights that are already in memory.
    """
    free += weights_loaded
    checkpointed = {"auto": need.total(False) > free, "always": True, "never": False}[wish]
    if need.total(checkpointed) > free:
        raise UserError(
            f"training needs at least {need.total(checkpointed) / _GB:.1f} GB of memory "
            f"({need.state / _GB:.1f} GB for weights, gradients and optimizer), {free / _GB:.1f} GB are free",
            'set training.method = "lora", lower training.max_length or student.token_budget, '
            "or use a machine with more memory",
        )
    return checkpointed


def must_checkpoint(
    model: nn.Module, row: tuple[int, int], wish: str, dtype: str, device: torch.device, args: TrainingArguments
) -> bool:
    """Whether this training has to recompute activations. `row`: tokens and targets of the largest row; `dtype`: of
    the forward passes. UserError if it cannot fit either way.
    """
    need = estimate(model, *row, 4 if dtype == "fp32" else 2, args.world_size if args.fsdp else 1)
    free, loaded = available(device), 0
    if device.type == "cpu":
        # Every process holds its own copy in the same memory.
        free //= args.world_size
        loaded = sum(p.numel() * p.element_size() for p in model.parameters())
    return choose_checkpointing(need, free, wish, loaded)


def peak_bytes(device: torch.device) -> int:
    """Highest memory use of this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: that begins with the peak of the parent process.
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) * 1024  # type: ignore[index]
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
