"""How a stage reports its progress. The listener is a terminal bar, the Dagster event log or a test."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

Fact = float | int | str


class Progress(Protocol):
    """`done` of `total` in `unit`; facts are plain numbers such as `tokens_per_s`, `eta_s` (seconds), `cost_usd`."""

    def __call__(self, done: int, total: int, unit: str = "rows", **facts: Fact) -> None: ...


def silent(done: int, total: int, unit: str = "rows", **facts: Fact) -> None:
    """A listener that ignores all reports."""


def throttled(listener: Progress, every_s: float, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Pass on at most one call per `every_s` seconds, and always the last one (`done == total`, `total` above 0)."""
    last = -every_s

    def report(done: int, total: int, unit: str = "rows", **facts: Fact) -> None:
        nonlocal last
        now = clock()
        # Total 0 is "not known yet", not "done".
        if 0 < total <= done or now - last >= every_s:
            last = now
            listener(done, total, unit, **facts)

    return report


# Dagster cannot pass the terminal's listener on as an argument, so it is kept here during a run.
_terminal: ContextVar[Callable[[str], Progress] | None] = ContextVar("srt_terminal_progress", default=None)


@contextmanager
def on_terminal(listener_for: Callable[[str], Progress]):
    """Within the block every stage also reports to `listener_for(asset name)`."""
    token = _terminal.set(listener_for)
    try:
        yield
    finally:
        _terminal.reset(token)


def terminal(asset: str) -> Progress | None:
    """The terminal's listener for this asset; None outside `on_terminal`."""
    listener_for = _terminal.get()
    return listener_for(asset) if listener_for else None
