"""Pace on a clock of its own: windows, reservations, back-off, budget."""

import asyncio
import time

from srt_assets.core.teacher.limits import Gate, RateLimit, backoff_s
from srt_assets.core.teacher.money import Budget


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_requests_wait_for_the_window():
    async def go():
        clock = Clock()
        limit = RateLimit(3, 0, window_s=60, margin_s=0.5, clock=clock)
        entries = [await limit.reserve(10) for _ in range(3)]
        fourth = asyncio.create_task(limit.reserve(10))
        await asyncio.sleep(0.01)
        clock.now = 2.0
        for entry in entries:
            limit.settle(entry, 10)
        clock.now = 62.4
        limit._changed.set()
        await asyncio.sleep(0.01)
        assert not fourth.done()
        clock.now = 62.6
        limit._changed.set()
        await asyncio.sleep(0.01)
        assert fourth.done()

    asyncio.run(go())


def test_a_call_counts_from_its_reply_but_not_much_later_than_it_was_sent():
    async def go():
        clock = Clock()
        limit = RateLimit(2, 0, clock=clock)
        quick, slow = await limit.reserve(1), await limit.reserve(1)
        clock.now = 0.5
        limit.settle(quick, 1)
        clock.now = 40.0
        limit.settle(slow, 1)
        assert (quick.at, slow.at) == (0.5, 3.0)

    asyncio.run(go())


def test_calls_of_an_earlier_run_count():
    async def go():
        clock = Clock()
        limit = RateLimit(3, 100, window_s=60, margin_s=0.5, clock=clock)
        limit.remember([(50.0, 60), (5.0, 30)])
        third = asyncio.create_task(limit.reserve(20))
        await asyncio.sleep(0.01)
        assert not third.done()  # 60 + 30 + 20 tokens
        clock.now = 10.6
        limit._changed.set()
        await asyncio.sleep(0.01)
        assert third.done()

    asyncio.run(go())


def test_a_clock_that_was_set_back_costs_no_more_than_the_window():
    async def go():
        clock = Clock()
        limit = RateLimit(3, 100, window_s=60, margin_s=0.5, clock=clock)
        # Made a moment ago, before the clock was set back by a day; and by one that was ahead by ten years.
        limit.remember([(-86_400.0, 60), (-86_399.0, 30), (-3e8, 10)])
        assert limit._wait_s(1) == 60.5
        clock.now = 60.6
        assert (await asyncio.wait_for(limit.reserve(100), 60)).tokens == 100

    asyncio.run(go())


def test_what_still_counts_is_handed_on_by_age():
    async def go():
        clock = Clock()
        clock.now = 100.0
        limit = RateLimit(9, 0, window_s=60, margin_s=0.5, clock=clock)
        limit.remember([(70.0, 1), (50.0, 2)])
        limit.settle(await limit.reserve(3), 4)
        clock.now = 105.0
        assert limit.made() == [(55.0, 2), (5.0, 4)]

    asyncio.run(go())


def test_tokens_are_reserved_and_settled():
    async def go():
        clock = Clock()
        limit = RateLimit(0, 100, clock=clock)
        first = await limit.reserve(90)
        second = asyncio.create_task(limit.reserve(50))
        await asyncio.sleep(0.01)
        assert not second.done()
        limit.settle(first, 40)
        await asyncio.sleep(0.01)
        assert second.done()
        limit.withdraw(await second)
        assert (await asyncio.wait_for(limit.reserve(60), 60)).tokens == 60
        # Larger than the limit: goes alone, when the window is empty.
        clock.now = 200.0
        assert (await asyncio.wait_for(limit.reserve(500), 60)).tokens == 500

    asyncio.run(go())


def test_the_gate_closes_shrinks_and_grows():
    async def go():
        clock = Clock()
        gate = Gate(10, clock=clock, jitter=lambda: 1.0)
        for _ in range(10):
            await gate.enter()
        gate.throttled(30.0)
        gate.throttled(5.0)
        assert gate.closed_for_s == 30.0 and gate.allowed == 7.0
        for _ in range(9):
            gate.leave()
        waiting = asyncio.create_task(gate.enter())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        clock.now = 30.1
        gate.leave()
        await asyncio.wait_for(waiting, 60)
        for _ in range(200):
            gate.succeeded()
        assert gate.allowed == 10
        # Without Retry-After the pause doubles from storm to storm, up to a minute.
        pauses = []
        for _ in range(9):
            clock.now += 100.0
            gate.throttled(None)
            pauses.append(round(gate.closed_for_s))
        assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]

    asyncio.run(go())


def test_the_gate_opens_for_all_when_the_loop_was_busy_past_its_time():
    async def go():
        gate = Gate(10)
        gate.throttled(0.01)
        first = asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        time.sleep(0.02)  # the time is over, and the timer that says so has not run
        second = asyncio.create_task(gate.enter())
        await asyncio.wait_for(asyncio.gather(first, second), 60)
        assert gate.in_flight == 2

    asyncio.run(go())


def test_backoff_is_capped_and_jittered():
    assert [backoff_s(n, 1.0) for n in (1, 2, 3, 9, 99)] == [1, 2, 4, 30, 30]
    assert backoff_s(3, 0.0) == 2.0


def test_the_budget_counts_what_is_in_flight():
    budget = Budget(1.0, spent=0.2)
    assert budget.try_reserve(0.5) and budget.try_reserve(0.3)
    assert budget.try_reserve(0.1) is None
    budget.settle(0.5, 0.1)
    assert budget.try_reserve(0.1)
    budget.settle(0.3, 0.3)
    budget.settle(0.1, 0.1)
    assert budget.try_reserve(0.4) is False and budget.exhausted and budget.spent < 1.0
