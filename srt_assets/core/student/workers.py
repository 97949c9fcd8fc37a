"""Chunks over devices: in this process for one device, one worker process each for several. Order is not kept."""

import contextlib
import multiprocessing as mp
import queue
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from srt_assets.core.errors import StageError, UserError
from srt_assets.core.student.chunks import ChunkScorer, Item, Scored, Spec

# One being computed, one being tokenized, one waiting: a worker never waits for its feeder.
_AHEAD = 3
Chunk = Sequence[Item]
Tick = Callable[[int], object]


def score_chunks(spec: Spec, devices: list[str], chunks: Iterable[Chunk], tick: Tick) -> Iterator[Scored]:
    """Score chunks on these devices, drawing them as needed. `tick(tokens)` is called after every forward pass.

    Raises StageError if a worker dies; UserError if the student cannot be loaded.
    """
    if len(devices) == 1:
        yield from pipeline(ChunkScorer(spec, devices[0]), chunks, tick)
    else:
        yield from _spread(spec, devices, iter(chunks), tick)


def pipeline(scorer: ChunkScorer, chunks: Iterable[Chunk], tick: Tick) -> Iterator[Scored]:
    """Score chunks one after the other while the next one is tokenized in a thread."""
    with ThreadPoolExecutor(1) as thread:
        before = None
        for chunk in chunks:
            now = (chunk, thread.submit(scorer.encode, chunk))
            if before:
                yield scorer.score(before[0], before[1].result(), tick)
            before = now
        if before:
            yield scorer.score(before[0], before[1].result(), tick)


def _spread(spec: Spec, devices: list[str], chunks: Iterator[Chunk], tick: Tick) -> Iterator[Scored]:
    # Spawned, not forked: a CUDA context or a thread pool does not survive a fork.
    context = mp.get_context("spawn")
    results: mp.Queue = context.Queue()
    inboxes = [context.Queue() for _ in devices]
    workers = [
        context.Process(target=_work, args=(spec, device, number, inboxes[number], results), daemon=True)
        for number, device in enumerate(devices)
    ]
    for worker in workers:
        worker.start()
    try:
        open_chunks = 0
        for inbox in inboxes * _AHEAD:
            open_chunks += _feed(inbox, chunks)
        while open_chunks:
            kind, number, value = _next(results, workers)
            if kind == "tick":
                tick(value)
            elif kind == "scored":
                open_chunks += _feed(inboxes[number], chunks) - 1
                yield value
            else:
                raise value
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _feed(inbox: mp.Queue, chunks: Iterator[Chunk]) -> int:
    """Send the next chunk, or the end; gives how many chunks were sent."""
    chunk = next(chunks, None)
    inbox.put(chunk)
    return 0 if chunk is None else 1


def _next(results: mp.Queue, workers: list) -> tuple:
    while True:
        with contextlib.suppress(queue.Empty):
            return results.get(timeout=1)
        for worker in workers:
            if worker.exitcode not in (None, 0):
                raise StageError(
                    f"a scoring worker died (exit code {worker.exitcode}); killed for memory, perhaps",
                    "run again: scored rows are kept. Fewer devices or a smaller student.token_budget need less",
                )


def _work(spec: Spec, device: str, number: int, inbox: mp.Queue, results: mp.Queue) -> None:
    try:
        scorer = ChunkScorer(spec, device)
        for scored in pipeline(scorer, _received(inbox), lambda tokens: results.put(("tick", number, tokens))):
            results.put(("scored", number, scored))
    except (UserError, StageError) as error:
        results.put(("error", number, error))
    except Exception as error:  # noqa: BLE001 - handed on whole to the process that waits for an answer
        text = "".join(traceback.format_exception(error))
        results.put(
            ("error", number, StageError(f"a scoring worker failed:\n{text}", "run again: scored rows are kept"))
        )


def _received(inbox: mp.Queue) -> Iterator[Chunk]:
    parent = mp.parent_process()
    while True:
        try:
            chunk = inbox.get(timeout=5)
        except queue.Empty:
            # Who was killed cannot stop its workers: they go when nobody is left to work for.
            if parent and not parent.is_alive():
                return
            continue
        if chunk is None:
            return
        yield chunk
