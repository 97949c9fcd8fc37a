"""Scores passes on one device: batches them, handles lack of memory, sums losses per sequence in float64."""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from srt_assets.core.scoring.batching import Batch, plan
from srt_assets.core.scoring.devices import is_memory_shortage
from srt_assets.core.scoring.encoding import Pass
from srt_assets.core.scoring.model import Forward, Prefix
from srt_assets.core.scoring.store import OUT_OF_MEMORY

NOT_FINITE = "not_finite"
Tick = Callable[[int], object]


class Scorer:
    """Sums of negative log-likelihoods for passes, in any number and order.

    `budget`: padded tokens per forward pass; reduced permanently when the device runs out of memory. `prefixes`: shared
    prefixes, whose keys and values are computed once. `cores`: CPU cores to use.

    Batches run in lanes (threads). On a CPU each lane is one core with its own batch, because cores that share a batch
    wait for each other at every small operation. On a GPU a second lane keeps the GPU busy while the first reads its
    results.
    """

    def __init__(self, forward: Forward, budget: int, prefixes: Sequence[Sequence[int]] = (), cores: int = 1) -> None:
        self.forward = forward
        self.budget = budget
        on_cpu = forward.device.type == "cpu"
        self.lanes = (cores if on_cpu else 2) if forward.concurrent else 1
        self.threads = cores // self.lanes if on_cpu else torch.get_num_threads()
        self.prefixes: dict[tuple[int, ...], Prefix] = {}
        if forward.shares_prefixes:
            self.prefixes = {tuple(ids): forward.prefix(list(ids)) for ids in prefixes}

    def score(self, passes: Sequence[Pass], tick: Tick = lambda tokens: None) -> list[float | str]:
        """For each pass the summed loss in nats, or a status that says why there is none.

        Calls `tick(tokens)` after every forward pass with the computed tokens, without padding and prefix.
        """
        sums: list[float | str] = [NOT_FINITE] * len(passes)
        waiting = self._plan(passes)
        crowded: list[Batch] = []
        running: deque[tuple[Batch, Future[np.ndarray | None]]] = deque()

        def add_up(batch: Batch, losses: np.ndarray) -> None:
            end = 0
            for i in batch.members:
                start, end = end, end + passes[i].n_scored
                total = float(losses[start:end].sum())
                sums[i] = total if math.isfinite(total) else NOT_FINITE
            tick(sum(len(passes[i].ids) - 1 - len(batch.prefix) for i in batch.members))

        with lanes(self.lanes, self.threads) as pool:
            while waiting or running:
                while waiting and len(running) <= self.lanes:
                    batch = waiting.pop()
                    if batch.tokens > self.budget and len(batch.members) > 1:
                        waiting += batch.halves()[::-1]
                    else:
                        running.append((batch, pool.submit(self._run, batch, passes)))
                batch, future = running.popleft()
                losses = future.result()
                if losses is not None:
                    add_up(batch, losses)
                elif len(batch.members) > 1:
                    self.budget = max(1, min(self.budget, batch.tokens // 2))
                    waiting += batch.halves()[::-1]
                else:
                    crowded.append(batch)
            # A pass that did not fit beside another lane's batch may fit when it runs alone.
            for batch in crowded:
                losses = pool.submit(self._run, batch, passes).result() if self.lanes > 1 else None
                if losses is not None:
                    add_up(batch, losses)
                else:
                    sums[batch.members[0]] = OUT_OF_MEMORY
        return sums

    def _plan(self, passes: Sequence[Pass]) -> list[Batch]:
        """The batches in reverse order, so that the next one is popped from the end."""
        alone_from = 1 if not self.forward.ways.batches else self.forward.long_from
        return plan(passes, self.budget, tuple(self.prefixes), alone_from)[::-1]

    def _run(self, batch: Batch, passes: Sequence[Pass]) -> np.ndarray | None:
        """Losses of the batch's scored tokens, concatenated; None if memory ran out."""
        skip = len(batch.prefix)
        # The last token of a sequence predicts no scored token.
        members = [passes[i].ids[skip:-1] for i in batch.members]
        width = max(map(len, members))
        ids = np.zeros((len(members), width), dtype=np.int64)
        for row, one in zip(ids, members, strict=True):
            row[: len(one)] = one
        scored = [passes[i] for i in batch.members]
        # The output at position t predicts the token at t + 1.
        positions = np.concatenate(
            [np.arange(one.start - 1, len(one.ids) - 1) - skip + r * width for r, one in enumerate(scored)]
        )
        targets = np.concatenate([one.ids[one.start :] for one in scored]).astype(np.int64)
        prefix = self.prefixes[batch.prefix] if batch.prefix else None
        try:
            losses = self.forward.nll(self._send(ids), self._send(positions), self._send(targets), prefix)
            return losses.cpu().numpy().astype(np.float64)
        except RuntimeError as error:
            if not is_memory_shortage(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _send(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.forward.device.type == "cuda":
            return tensor.pin_memory().to(self.forward.device, non_blocking=True)
        return tensor.to(self.forward.device)


@contextlib.contextmanager
def lanes(count: int, threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of `count` Python threads that compute on `threads` cores each."""
    before = torch.get_num_threads()
    try:
        # Set in every lane: in a thread that did not set it, matrix products use all cores.
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)  # part of the setting is global to the process
