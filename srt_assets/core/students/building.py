"""Limits the size of a model while it is built from an untrusted configuration, by the size of its weight files.

transformers first builds a model without memory (torch's device `meta`), then allocates every weight, also those that
the files lack. In between nothing checks that the files hold values for them, or how many layers there are. A model
that `plausible.py` could not refuse from the configuration alone is refused here while it is built.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch.nn.modules import module as hooks

from srt_assets.core.errors import UserError
from srt_assets.core.students.headers import Held

# Allowed ratio of the model's numbers to those in the files: a matrix may have three names until they are tied, and a
# head may be missing (`loading.py` names it). A quantized number may be stored in two bits.
_TIMES, _TIMES_QUANTIZED = 4, 4
_SMALL = 1 << 26
# Numbers in buffers that no file holds, such as a causal mask of 8,192 positions in each of 16 layers.
_MOST_BUFFERED = 1 << 30
_PARTS_A_TENSOR, _FEW_PARTS = 20, 20_000


@contextmanager
def bounded(directory: Path, held: Held, quantized: bool) -> Iterator[None]:
    """Within the block, and in this thread, allow only models that these weights can fill.

    UserError names the first part that exceeds the limit, before memory is allocated for it.
    """
    most = _SMALL + (8 * _TIMES_QUANTIZED * held.n_bytes if quantized else _TIMES * held.numbers)
    parts_left = _FEW_PARTS + _PARTS_A_TENSOR * held.tensors
    left = {"weight": most, "buffer": _MOST_BUFFERED + most}
    thread = threading.get_ident()

    def count(kind: str, owner: torch.nn.Module, tensor: torch.Tensor | None) -> None:
        if tensor is None or not tensor.is_meta or threading.get_ident() != thread:
            return
        left[kind] -= tensor.numel()
        if left[kind] < 0:
            shape = " x ".join(f"{side:,}" for side in tensor.shape)
            raise _too_large(directory, f"a {kind} of {shape} in {type(owner).__name__}", held)

    def count_parts(owner: torch.nn.Module, name: str, part: torch.nn.Module | None) -> None:
        nonlocal parts_left
        parts_left -= threading.get_ident() == thread
        if parts_left < 0:
            raise _too_large(directory, f"more and more parts of {type(owner).__name__} (the last is {name})", held)

    with ExitStack() as stack:
        for handle in (
            hooks.register_module_parameter_registration_hook(lambda owner, _, one: count("weight", owner, one)),
            hooks.register_module_buffer_registration_hook(lambda owner, _, one: count("buffer", owner, one)),
            hooks.register_module_module_registration_hook(count_parts),
        ):
            stack.callback(handle.remove)
        yield


def _too_large(directory: Path, what: str, held: Held) -> UserError:
    return UserError(
        f"the configuration of {directory} asks for {what}, but all its weights are {held.numbers:,} numbers in "
        f"{held.tensors:,} tensors",
        "put the config.json there that the weights were saved with",
    )
