"""Which samples make each optimizer step, and how they are packed into forward passes. Pure arithmetic, no torch.

A step is exactly `batch_size` samples, as in the paper; packing only decides how they travel through the model, so the
gradient is the one that unpacked batches would give.
"""

import math
from collections.abc import Sequence

import numpy as np


def count_steps(n: int, batch_size: int, epochs: float, max_steps: int) -> int:
    """Optimizer steps of a training on `n` samples. `max_steps` > 0 is the answer itself, whatever `epochs` says."""
    return max_steps or math.ceil(epochs * math.ceil(n / batch_size))


def step_samples(n: int, batch_size: int, steps: int, seed: int) -> list[np.ndarray]:
    """Sample numbers of every step: each epoch is a new permutation of 0..n-1, its last batch may be smaller.

    The order depends on `seed` and the epoch alone, so a resumed training sees the same batches.
    """
    found: list[np.ndarray] = []
    epoch = 0
    while len(found) < steps:
        order = np.random.default_rng([seed, epoch]).permutation(n)
        found += [order[i : i + batch_size] for i in range(0, n, batch_size)]
        epoch += 1
    return found[:steps]


def pack(lengths: Sequence[int], budget: int, processes: int = 1) -> list[list[int]]:
    """Bins of item numbers with at most `budget` tokens each; an item longer than that lies alone.

    First-fit decreasing. The number of bins is a multiple of `processes` (empty ones are added), and bin `i` is meant
    for process `i % processes`: every process makes the same number of forward passes, which sharded models need.
    """
    # Never fewer bins than processes: the work of a small step is shared too.
    room = min(budget, math.ceil(sum(lengths) / processes)) if processes > 1 else budget
    bins: list[list[int]] = []
    free: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((b for b, left in enumerate(free) if left >= lengths[item]), None)
        if place is None:
            bins.append([])
            free.append(room)
            place = len(bins) - 1
        bins[place].append(item)
        free[place] -= lengths[item]
    bins += [[] for _ in range(-len(bins) % processes)]
    return bins
