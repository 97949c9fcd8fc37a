"""Prices per token, and a budget in which each call reserves its highest price before it is sent."""

from dataclasses import dataclass
from typing import NamedTuple

from srt_assets.core.errors import UserError
from srt_assets.core.teacher.call import LOCAL
from srt_assets.settings import Teacher

_MILLION = 1_000_000


@dataclass(frozen=True)
class Prices:
    """USD per token; None if unknown. `source` says where the numbers come from.

    `cached`: price of prompt tokens that the provider read from its cache; None: the same as other prompt tokens.
    """

    input: float | None
    output: float | None
    source: str
    cached: float | None = None

    @property
    def known(self) -> bool:
        return self.input is not None and self.output is not None

    def cost(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float | None:
        """USD of a call; `cached_tokens` are part of `prompt_tokens`."""
        if self.input is None or self.output is None:
            return None
        saved = 0.0 if self.cached is None else (self.input - self.cached) * cached_tokens
        return self.input * prompt_tokens - saved + self.output * completion_tokens

    def most(self, prompt_bound: int, allowed: int) -> float:
        """The highest price of a call (USD); 0 if prices are unknown."""
        return self.cost(prompt_bound, allowed) or 0.0


def prices_of(teacher: Teacher) -> Prices:
    """Prices from the settings, else from LiteLLM's table.

    UserError if only one of the two prices is set, or a budget is set and the price is unknown.
    """
    if bool(teacher.usd_per_million_input) != bool(teacher.usd_per_million_output):
        raise UserError(
            "only one of teacher.usd_per_million_input and teacher.usd_per_million_output is set: the other half of "
            "every call would count as free",
            "set both in srt.toml, or neither",
        )
    if teacher.usd_per_million_input:
        settings = (teacher.usd_per_million_input / _MILLION, teacher.usd_per_million_output / _MILLION)
        return Prices(*settings, "the settings")
    if teacher.model == LOCAL:
        return Prices(0.0, 0.0, "the embedded teacher is free")
    from srt_assets.core.teacher.client import price_in_litellm

    if found := price_in_litellm(teacher.model, teacher.batch):
        source = "LiteLLM's price table" + (", for batches" if teacher.batch else "")
        return Prices(found[0], found[1], source, found[2])
    if teacher.budget_usd:
        raise UserError(
            f"teacher.budget_usd is set, but the price of the model {teacher.model!r} is not known",
            "set teacher.usd_per_million_input and teacher.usd_per_million_output in srt.toml, or budget_usd = 0",
        )
    remedy = "set teacher.usd_per_million_input and teacher.usd_per_million_output"
    return Prices(None, None, f"unknown for {teacher.model!r}: {remedy}")


@dataclass
class Budget:
    """`limit` USD in all (0 = no limit). A call reserves its highest price before it is sent and settles afterwards.

    Money spent plus money reserved never exceeds the limit. If a call does not fit although no call is in flight, the
    budget is `exhausted` and stays so.
    """

    limit: float
    spent: float
    reserved: float = 0.0
    in_flight: int = 0
    exhausted: bool = False

    def try_reserve(self, usd: float) -> bool | None:
        """True: reserved. False: the budget is exhausted. None: wait until a call in flight has settled."""
        if self.exhausted:
            return False
        # A tolerance of half a billionth of a dollar for the rounding of sums.
        if not self.limit or self.spent + self.reserved + usd <= self.limit + 5e-10:
            self.in_flight += 1
            self.reserved += usd
            return True
        if self.in_flight:
            return None
        self.exhausted = True
        return False

    def settle(self, reserved: float, cost: float) -> None:
        self.in_flight -= 1
        self.reserved -= reserved
        self.spent += cost


class Money(NamedTuple):
    """Prices, and the budget of a run."""

    prices: Prices
    budget: Budget
