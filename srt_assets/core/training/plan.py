"""The samples of each optimizer step, and their packing into forward passes. Only arithmetic, no torch.

A step has exactly `batch_size` samples, as in the paper. Packing only groups them into forward passes, so the gradient
is the same as with unpacked batches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def count_steps(n: int, batch_size: int, epochs: float, max_steps: int) -> int:
    """Optimizer steps of a training on `n` samples: `max_steps` if it is above 0, else by `epochs`."""
    return max_steps or math.ceil(epochs * math.ceil(n / batch_size))


@dataclass(eq=False)
class StepSamples(Sequence[np.ndarray]):
    """Sample numbers of every step, computed on demand: only one epoch's order is in memory."""

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
    """Upper bounds for the tokens and the targets of the largest row of any step.

    Tokens: the longest sample, or what fits into the budget and a step. Targets: the longest of a sample, or the
    tokens times the samples' mean share of targets.
    """
    longest = int(lengths.max())
    most = min(len(lengths), batch_size)
    step = int(np.partition(lengths, -most)[-most:].sum(dtype=np.int64))
    tokens = max(longest, min(budget, step))
    share = int(targets.sum(dtype=np.int64)) / int(lengths.sum(dtype=np.int64))
    return tokens, max(int(targets.max()), math.ceil(tokens * share))


def pack(lengths: Sequence[int], budget: int, processes: int = 1) -> list[list[int]]:
    """Bins of item numbers with at most `budget` tokens each; a longer item gets a bin of its own.

    First-fit decreasing. The number of bins is a multiple of `processes` (empty ones are added), and bin `i` is meant
    for process `i % processes`: every process makes the same number of forward passes, which sharded models need.
    """
    # At least as many bins as processes, so that a small step is shared too.
    room = min(budget, math.ceil(sum(lengths) / processes)) if processes > 1 else budget
    bins: list[list[int]] = []
    free = _Free(len(lengths), room)
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # An item longer than a bin gets the next empty bin.
        place = free.first(lengths[item]) if lengths[item] <= room else len(bins)
        if place == len(bins):
            bins.append([])
        bins[place].append(item)
        free.take(place, lengths[item])
    bins += [[] for _ in range(-len(bins) % processes)]
    return bins


class _Free:
    """The free tokens of each bin as a tree of maxima, which finds the first bin with enough in logarithmic time."""

    def __init__(self, bins: int, room: int) -> None:
        self._leaves = 1 << max(0, bins - 1).bit_length()
        self._tree = [room] * (2 * self._leaves)

    def first(self, size: int) -> int:
        """The first bin with this many free tokens. It exists, because an empty bin always has them."""
        node = 1
        while node < self._leaves:
            node *= 2
            node += self._tree[node] < size
        return node - self._leaves

    def take(self, place: int, size: int) -> None:
        """Take this many tokens of a bin."""
        tree, node = self._tree, place + self._leaves
        tree[node] -= size
        while node > 1:
            node //= 2
            tree[node] = max(tree[2 * node], tree[2 * node + 1])
