"""Scores passes on one device: batches them, survives memory shortage, sums losses per sequence in float64."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from srt_assets.core.student.batching import Batch, plan
from srt_assets.core.student.encoding import Pass
from srt_assets.core.student.model import Forward, Prefix

OUT_OF_MEMORY = "out_of_memory"
NOT_FINITE = "not_finite"
Tick = Callable[[int], object]


class Scorer:
    """Sums of negative log-likelihoods for passes, in any number and order.

    `budget`: padded tokens per forward pass; it shrinks for good when the device runs out of memory. `prefixes`:
    beginnings that many passes share; their keys and values are computed once.
    """

    def __init__(self, forward: Forward, budget: int, prefixes: Sequence[Sequence[int]] = ()) -> None:
        self.forward = forward
        self.budget = budget
        self.prefixes: dict[tuple[int, ...], Prefix] = {}
        if forward.shares_prefixes:
            self.prefixes = {tuple(ids): forward.prefix(list(ids)) for ids in prefixes}

    def score(self, passes: Sequence[Pass], tick: Tick = lambda tokens: None) -> list[float | str]:
        """For each pass the summed loss in nats, or the status that says why there is none.

        `tick(tokens)` is called after every forward pass with the tokens it computed, padding and prefix left out.
        """
        sums: list[float | str] = [NOT_FINITE] * len(passes)
        waiting = plan(passes, self.budget, tuple(self.prefixes))[::-1]
        pending: tuple[Batch, torch.Tensor] | None = None
        while waiting:
            batch = waiting.pop()
            if batch.tokens > self.budget and len(batch.members) > 1:
                waiting += batch.halves()[::-1]
                continue
            losses = self._run(batch, passes)
            if losses is None:
                if len(batch.members) > 1:
                    self.budget = max(1, min(self.budget, batch.tokens // 2))
                    waiting += batch.halves()[::-1]
                else:
                    sums[batch.members[0]] = OUT_OF_MEMORY
                continue
            # Read the batch before this one: the device computes while the host adds up.
            if pending:
                self._add_up(*pending, passes, sums, tick)
            pending = (batch, losses)
        if pending:
            self._add_up(*pending, passes, sums, tick)
        return sums

    def _run(self, batch: Batch, passes: Sequence[Pass]) -> torch.Tensor | None:
        """Losses of the batch's scored tokens, one after the other, still on the device; None: memory ran out."""
        skip = len(batch.prefix)
        members = [passes[i] for i in batch.members]
        width = max(len(p.ids) for p in members) - skip
        ids = np.zeros((len(members), width), dtype=np.int64)
        for row, one in zip(ids, members, strict=True):
            row[: len(one.ids) - skip] = one.ids[skip:]
        # The output at place t predicts the token at t + 1.
        positions = np.concatenate(
            [np.arange(one.start - 1 - skip, len(one.ids) - 1 - skip) + r * width for r, one in enumerate(members)]
        )
        targets = np.concatenate([one.ids[one.start :] for one in members]).astype(np.int64)
        prefix = self.prefixes[batch.prefix] if batch.prefix else None
        try:
            return self.forward.nll(self._send(ids), self._send(positions), self._send(targets), prefix)
        except RuntimeError as error:
            if not _is_memory_shortage(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _send(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.forward.device.type == "cuda":
            return tensor.pin_memory().to(self.forward.device, non_blocking=True)
        return tensor.to(self.forward.device)

    @staticmethod
    def _add_up(
        batch: Batch, losses: torch.Tensor, passes: Sequence[Pass], sums: list[float | str], tick: Tick
    ) -> None:
        values = losses.cpu().numpy().astype(np.float64)
        members = [passes[i] for i in batch.members]
        ends = np.cumsum([one.n_scored for one in members])
        for i, end, one in zip(batch.members, ends, members, strict=True):
            total = float(values[end - one.n_scored : end].sum())
            sums[i] = total if math.isfinite(total) else NOT_FINITE
        tick(sum(len(one.ids) - len(batch.prefix) for one in members))


def _is_memory_shortage(error: RuntimeError) -> bool:
    """Out of memory on a GPU has a type of its own; on the CPU only a text."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
