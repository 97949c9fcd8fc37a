"""Runs many calls at once: an event loop in its own thread, a fixed number of workers, a stop that loses no reply.

The loop does not run in the main thread, because Ctrl-C and Dagster's Terminate raise there, and the loop would swallow
a BaseException that is raised inside a task. How one call is made is in `engine.py`.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from srt_assets.core.teacher.engine import Engine

# All calls for one record and purpose: a call, and perhaps a correction turn.
Exchange = Callable[[Engine], Awaitable[None]]

REPORT_EVERY_S = 0.5
# Seconds between the starts of two workers. Calls that start together are answered together, wait for each other to be
# read and are sent together again, in every round.
RAMP_S = 0.005
# Seconds after a stop in which the run still accepts replies to calls in flight, because they are paid for.
GRACE_S = 3.0


def drive(
    make_engine: Callable[[], Engine], chunks: Iterator[list[Exchange]], workers: int, report: Callable[[], None]
) -> None:
    """Run all exchanges, at most `workers` at a time. Chunks are fetched on demand, so memory use stays constant.

    The first exception, or an interrupt of the main thread, stops the rest and is raised here. Calls in flight then get
    GRACE_S seconds, and every received reply is on disk when this returns.
    """
    run = _Run(make_engine, chunks, workers)
    thread = threading.Thread(target=run.main, name="teacher", daemon=True)
    thread.start()
    try:
        # Not thread.join(): if an exception interrupts it, Python takes the thread for ended from then on.
        while not run.ended.wait(REPORT_EVERY_S):
            report()
    except BaseException:
        run.stop()
        run.ended.wait(GRACE_S + 5.0)
        raise
    if run.error is not None:
        raise run.error


@dataclass
class _Run:
    make_engine: Callable[[], Engine]
    chunks: Iterator[list[Exchange]]
    workers: int
    error: BaseException | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    loop: asyncio.AbstractEventLoop | None = None
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    stop_asked: bool = False

    def main(self) -> None:
        try:
            asyncio.run(self._drive())
        except BaseException as error:  # noqa: BLE001 - carried to the main thread and raised there
            self.error = error
        finally:
            self.ended.set()

    def stop(self) -> None:
        self.stop_asked = True
        if self.loop:
            with contextlib.suppress(RuntimeError):  # the loop may have ended meanwhile
                self.loop.call_soon_threadsafe(self.stopped.set)

    async def _drive(self) -> None:
        self.loop = asyncio.get_running_loop()
        if self.stop_asked:
            return
        engine = self.make_engine()
        queue: asyncio.Queue[Exchange | None] = asyncio.Queue(maxsize=2 * self.workers)
        tasks = [asyncio.create_task(self._work(engine, queue, i * RAMP_S)) for i in range(self.workers)]
        feeder = asyncio.create_task(self._feed(queue))
        stopped = asyncio.create_task(self.stopped.wait())
        try:
            waiting: set[asyncio.Task[Any]] = {feeder, stopped, *tasks}
            while waiting - {stopped}:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # raises what the task raised
                if stopped in done:
                    return
            engine.ended()
        finally:
            engine.stopping = True
            feeder.cancel()
            stopped.cancel()
            await self._bring_home(engine, tasks)
            await engine.client.close()

    async def _feed(self, queue: "asyncio.Queue[Exchange | None]") -> None:
        while (chunk := await asyncio.to_thread(next, self.chunks, None)) is not None:
            for exchange in chunk:
                await queue.put(exchange)
        for _ in range(self.workers):
            await queue.put(None)

    async def _work(self, engine: Engine, queue: "asyncio.Queue[Exchange | None]", after_s: float) -> None:
        await asyncio.sleep(after_s)
        while not engine.stopping and (exchange := await queue.get()) is not None:
            await exchange(engine)

    async def _bring_home(self, engine: Engine, tasks: list["asyncio.Task[None]"]) -> None:
        """Cancel waiting workers; give workers with a call in flight GRACE_S seconds to receive the reply.

        On a full disk they get the full timeout of a call: the user has not asked to stop, and space for these replies
        is reserved.
        """
        grace_s = engine.teacher.timeout_s if engine.ledger.full else GRACE_S
        for task in tasks:
            if task not in engine.sending:
                task.cancel()
        if alive := [task for task in tasks if not task.done()]:
            deadline = time.monotonic() + grace_s
            while engine.sending and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0)
            await asyncio.wait(alive, timeout=max(0.1, deadline - time.monotonic()))
            for task in alive:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
