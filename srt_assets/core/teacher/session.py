"""A session with the teacher: starts the local server if needed, sets up client, budget and limits, runs the calls."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from srt_assets.core import reserve
from srt_assets.core.lake import Lake
from srt_assets.core.teacher import local
from srt_assets.core.teacher.call import LOCAL
from srt_assets.core.teacher.client import connect
from srt_assets.core.teacher.engine import Engine, Tally
from srt_assets.core.teacher.flow import Exchange, drive
from srt_assets.core.teacher.health import Health
from srt_assets.core.teacher.ledger import Ledger
from srt_assets.core.teacher.limits import WINDOW_S, Gate, Limits, RateLimit
from srt_assets.core.teacher.lookup import Lookup
from srt_assets.core.teacher.money import Budget, Money, prices_of
from srt_assets.settings import Teacher

# Bytes of disk space reserved for a reply in the ledger; tokens of most languages have fewer.
_BYTES_A_TOKEN, _BYTES_A_ROW = 4, 1000
# The last rate limit of this process by model and address, and the segments with its calls. It counts these calls on
# its monotonic clock, which is more reliable than the ledger's times when the wall clock is set.
_past: dict[tuple[str, str], tuple[RateLimit, frozenset[str]]] = {}


@contextmanager
def short_collections() -> Iterator[None]:
    """Exclude the objects that are loaded by now from garbage collection, which pauses all calls.

    With LiteLLM and its imports frozen, 5,120 calls of 2 s, 256 at a time, took 42.2 s instead of 43.8 s (ideal: 40 s).
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def ask_all(
    teacher: Teacher,
    lake: Lake,
    lookup: Lookup,
    exchanges: Iterator[list[Exchange]],
    tally: Tally,
    report: Callable[[str], None],
) -> None:
    """Run the exchanges against the teacher of the settings. When this returns or raises, all replies are on disk.

    `report` is called at intervals with what the run waits for ('' if nothing). Raises what `client.connect`,
    `money.prices_of` and `Engine.ask` raise.
    """
    prices = prices_of(teacher)
    tally.priced = prices.known
    concurrency = min(teacher.concurrency, local.SLOTS) if teacher.model == LOCAL else teacher.concurrency
    # Reserve space before any call is paid: if the disk fills up, replies in flight must still be written.
    reserve.hold(lake.home, least=concurrency * (_BYTES_A_TOKEN * teacher.max_tokens + _BYTES_A_ROW))
    with ExitStack() as stack:
        book = stack.enter_context(Ledger(lake))
        base = stack.enter_context(local.serve()) if teacher.model == LOCAL else ""
        client = connect(teacher, base)
        where = client.api_base or f"the provider of {teacher.model}"
        health = Health(where, teacher.patience_s, concurrency)
        budget = Budget(teacher.budget_usd, lookup.spent_usd())

        def make_engine() -> Engine:
            rate, place = RateLimit(teacher.rpm, teacher.tpm), (teacher.model, client.api_base)
            # The provider also counts recent calls of the other asset or of a stopped run.
            past, ours = _past.get(place, (rate, frozenset[str]()))
            others = lookup.recent(teacher.model, WINDOW_S + 1, besides=ours)
            rate.remember(sorted([*past.made(), *others], reverse=True))
            if rate.counts:
                _past[place] = rate, ours | {book.name}
            return Engine(client, book, Money(prices, budget), Limits(rate, Gate(concurrency)), health, tally)

        # A few more workers than calls in flight: a worker that waits for the disk or parses must not use up a slot.
        stack.enter_context(short_collections())
        started_at = time.monotonic()
        drive(make_engine, exchanges, concurrency + max(2, concurrency // 8), lambda: report(health.waits_for()))
        tally.seconds = time.monotonic() - started_at
