"""Which samples make each optimizer step, and how they are packed into forward passes. Pure arithmetic, no torch.

A step is exactly `batch_size` samples, as in the paper; packing only decides how they travel through the model, so the
gradient is the one that unpacked batches would give.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def count_steps(n: int, batch_size: int, epochs: float, max_steps: int) -> int:
    """Optimizer steps of a training on `n` samples. `max_steps` > 0 is the answer itself, whatever `epochs` says."""
    return max_steps or math.ceil(epochs * math.ceil(n / batch_size))


@dataclass(eq=False)
class StepSamples(Sequence[np.ndarray]):
    """Sample numbers of every step, made when they are asked for: only one epoch is in memory."""

    n: int
    batch_size: int
    steps: int
    seed: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step):
        if isinstance(step, slice):
            return [self[i] for i in range(*step.indices(self.steps))]
        if not 0 <= step < self.steps:
            raise IndexError(step)
        epoch, place = divmod(step, math.ceil(self.n / self.batch_size))
        return self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]

    def _order(self, epoch: int) -> np.ndarray:
        known = self.__dict__.get("_known")
        if known is None or known[0] != epoch:
            known = self._known = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.n)
        return known[1]


def step_samples(n: int, batch_size: int, steps: int, seed: int) -> StepSamples:
    """Sample numbers of every step: each epoch is a new permutation of 0..n-1, its last batch may be smaller.

    The order depends on `seed` and the epoch alone, so a resumed training sees the same batches.
    """
    return StepSamples(n, batch_size, steps, seed)


def row_bound(lengths: np.ndarray, targets: np.ndarray, batch_size: int, budget: int) -> tuple[int, int]:
    """Tokens that the largest row of any step may have, and how many of them are learned from: the longest sample
    alone, or as much as the budget and a step can hold, with the share of targets that samples have on average.
    """
    longest = int(lengths.max())
    most = min(len(lengths), batch_size)
    step = int(np.partition(lengths, -most)[-most:].sum(dtype=np.int64))
    tokens = max(longest, min(budget, step))
    share = int(targets.sum(dtype=np.int64)) / int(lengths.sum(dtype=np.int64))
    return tokens, max(int(targets.max()), math.ceil(tokens * share))


def pack(lengths: Sequence[int], budget: int, processes: int = 1) -> list[list[int]]:
    """Bins of item numbers with at most `budget` tokens each; an item longer than that lies alone.

    First-fit decreasing. The number of bins is a multiple of `processes` (empty ones are added), and bin `i` is meant
    for process `i % processes`: every process makes the same number of forward passes, which sharded models need.
    """
    # Never fewer bins than processes: the work of a small step is shared too.
    room = min(budget, math.ceil(sum(lengths) / processes)) if processes > 1 else budget
    bins: list[list[int]] = []
    free = _Free(len(lengths), room)
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # No bin holds what is longer than one: it gets the next that is empty.
        place = free.first(lengths[item]) if lengths[item] <= room else len(bins)
        if place == len(bins):
            bins.append([])
        bins[place].append(item)
        free.take(place, lengths[item])
    bins += [[] for _ in range(-len(bins) % processes)]
    return bins


class _Free:
    """The room left in each bin as a tree of maxima, so that the first bin that has enough is found without a look at
    each: packing is then no longer quadratic.
    """

    def __init__(self, bins: int, room: int) -> None:
        self._leaves = 1 << max(0, bins - 1).bit_length()
        self._tree = [room] * (2 * self._leaves)

    def first(self, size: int) -> int:
        """The first bin with so much room. There is one, for a bin that is empty always has it."""
        node = 1
        while node < self._leaves:
            node *= 2
            node += self._tree[node] < size
        return node - self._leaves

    def take(self, place: int, size: int) -> None:
        """Fill a bin by so much."""
        tree, node = self._tree, place + self._leaves
        tree[node] -= size
        while node > 1:
            node //= 2
            tree[node] = max(tree[2 * node], tree[2 * node + 1])
