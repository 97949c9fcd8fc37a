"""Distributes chunks over devices: one device in this process, several in a worker process each, in any order."""

import contextlib
import multiprocessing as mp
import queue
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from typing import cast

from srt_assets.core.children import protected
from srt_assets.core.errors import StageError, UserError
from srt_assets.core.masking import redact
from srt_assets.core.scoring.chunks import ChunkScorer, Item, Scored, Spec
from srt_assets.core.signals import listen

# Chunks per worker: one being computed, one being tokenized, one waiting, so that a worker never waits for chunks.
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
    with protected():
        workers = [_Worker(context, spec, device) for device in devices]
    try:
        for worker in workers * _AHEAD:
            worker.feed(chunks)
        while busy := {worker.results: worker for worker in workers if worker.open_chunks}:
            for ready in wait(list(busy)):
                worker = busy[cast(Connection, ready)]
                kind, value = worker.receive()
                if kind == "tick":
                    tick(value)
                elif kind == "scored":
                    worker.open_chunks -= 1
                    worker.feed(chunks)
                    yield value
                else:
                    raise value
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A worker process on one device, with a pipe of its own for its answers.

    Only the worker and this process hold an end of the pipe. If either is killed, even in the middle of an answer, the
    pipe closes and the other notices.
    """

    def __init__(self, context: SpawnContext, spec: Spec, device: str) -> None:
        self.open_chunks = 0
        self.inbox: mp.Queue = context.Queue()
        # Chunks that a dead worker did not fetch must not keep this process from ending.
        self.inbox.cancel_join_thread()
        self.results, answers = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(spec, device, self.inbox, answers), daemon=True)
        self.process.start()
        answers.close()

    def feed(self, chunks: Iterator[Chunk]) -> None:
        """Send the next chunk, or None if there are no more."""
        chunk = next(chunks, None)
        self.inbox.put(chunk)
        self.open_chunks += chunk is not None

    def receive(self) -> tuple:
        try:
            return self.results.recv()
        except (EOFError, OSError):
            self.process.join()
            raise StageError(
                f"a scoring worker died (exit code {self.process.exitcode}); killed for memory, perhaps",
                "run again: scored rows are kept. Fewer devices or a smaller student.token_budget need less",
            ) from None

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.results.close()
        self.inbox.close()


def _work(spec: Spec, device: str, inbox: mp.Queue, answers: Connection) -> None:
    # Ctrl-C reaches every process of the terminal. Workers ignore it; the parent ends them with SIGTERM.
    listen()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # If the parent is gone, the pipe is closed and there is nothing to report.
    with contextlib.suppress(BrokenPipeError):
        try:
            scorer = ChunkScorer(spec, device)
            for scored in pipeline(scorer, _received(inbox), lambda tokens: answers.send(("tick", tokens))):
                answers.send(("scored", scored))
        except BrokenPipeError:
            raise
        except (UserError, StageError) as error:
            answers.send(("error", error))
        except Exception as error:  # noqa: BLE001 - passed on to the parent, which raises it
            text = redact("".join(traceback.format_exception(error)))
            answers.send(("error", StageError(f"a scoring worker failed:\n{text}", "run again: scored rows are kept")))


def _received(inbox: mp.Queue) -> Iterator[Chunk]:
    parent = mp.parent_process()
    while True:
        try:
            chunk = inbox.get(timeout=5)
        except queue.Empty:
            # A killed parent cannot stop its workers, so they check whether it is alive.
            if parent and not parent.is_alive():
                return
            continue
        if chunk is None:
            return
        yield chunk
