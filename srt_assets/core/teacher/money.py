"""What calls cost: prices per token, and a budget that in-flight calls have already reserved their part of."""

from dataclasses import dataclass
from typing import NamedTuple

from srt_assets.core.errors import UserError
from srt_assets.settings import Teacher

_MILLION = 1_000_000


@dataclass(frozen=True)
class Prices:
    """USD per token, or None where it is not known. `source` says where the numbers come from.

    `cached`: for what the provider read from its cache; None counts it like any other input.
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
        """The most a call can cost (USD); 0 where prices are not known."""
        return self.cost(prompt_bound, allowed) or 0.0


def prices_of(teacher: Teacher) -> Prices:
    """The settings' prices, else LiteLLM's table. UserError: half a price, or a budget and no price to hold it by."""
    if bool(teacher.usd_per_million_input) != bool(teacher.usd_per_million_output):
        raise UserError(
            "only one of teacher.usd_per_million_input and teacher.usd_per_million_output is set: the other half of "
            "every call would count as free",
            "set both in srt.toml, or neither",
        )
    if teacher.usd_per_million_input:
        settings = (teacher.usd_per_million_input / _MILLION, teacher.usd_per_million_output / _MILLION)
        return Prices(*settings, "the settings")
    if teacher.model == "local":
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
    """`limit` USD in all (0 = none). A call reserves the most it can cost before it is sent and settles after.

    Money that was spent and money in flight never exceed the limit together. Once a call does not fit although nothing
    is in flight, the budget is `exhausted` and stays so.
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
        # Half a billionth of a dollar of slack for the rounding of sums.
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
    """What calls cost, and what may be spent on them."""

    prices: Prices
    budget: Budget
