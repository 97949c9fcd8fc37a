"""`srt estimate`: the number of calls that the ledger cannot answer, their tokens and price, and the assumptions."""

from dataclasses import dataclass, field

from srt_assets.core.lake import Lake
from srt_assets.core.teacher.ask import Room
from srt_assets.core.teacher.call import LOCAL, Call
from srt_assets.core.teacher.client import check_model, room_of
from srt_assets.core.teacher.dry_run import DryRun
from srt_assets.core.teacher.lookup import Lookup
from srt_assets.core.teacher.money import prices_of
from srt_assets.settings import Settings, Teacher

# Reply tokens for a model without replies in the ledger: critique and texts as long as the paper's (table 6).
_REPLY_TOKENS = {"reflect_instruction": 700, "reflect_response": 500, "reflect_response_of_reflected": 550}
_LOCAL_REPLY_TOKENS = {"reflect_instruction": 170, "reflect_response": 140, "reflect_response_of_reflected": 140}
_ENOUGH_REPLIES = 20
_CHARS_PER_TOKEN = 4.0


@dataclass
class Estimate:
    """`usd` is None if the model's price is unknown. `assumptions`: sentences about where the numbers come from."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = 0.0
    by_purpose: dict[str, int] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)


# By purpose: mean tokens of a prompt, mean tokens of a reply, number of replies.
_Seen = dict[str, tuple[float, float, int]]


def estimate(settings: Settings, lake: Lake) -> Estimate:
    """Calls, tokens and USD that a run of both reflection assets would still need.

    StageError if there are no raw records, UserError for a model without a known provider.
    """
    teacher = settings.teacher
    check_model(teacher)
    found = Estimate()
    with Lookup(lake) as lookup:
        means = lookup.mean_tokens(teacher.model)
        seen = {purpose: (prompt, reply, n) for purpose, prompt, reply, n in means if n >= _ENOUGH_REPLIES}
        dry = DryRun(settings, lake, lookup, room_offline(teacher))
        for purpose, call in dry.calls():
            found.calls += 1
            found.by_purpose[purpose] = found.by_purpose.get(purpose, 0) + 1
            guess = (_prompt_tokens(call), _reply_tokens(purpose, teacher), 0)
            prompt, reply, _ = seen.get(purpose, guess)
            found.prompt_tokens += round(prompt)
            found.completion_tokens += round(reply)
        spent = lookup.spent_usd()
    prices = prices_of(teacher.model_copy(update={"budget_usd": 0.0}))
    found.usd = prices.cost(found.prompt_tokens, found.completion_tokens) if found.calls else 0.0
    found.assumptions = [
        f"prices: {prices.source}",
        *_of_the_budget(teacher, spent, found),
        "no correction turns and no failed calls",
        *(_assumption(purpose, seen, teacher) for purpose in found.by_purpose),
    ]
    if found.by_purpose.get("reflect_instruction"):
        found.assumptions.append("every instruction is reflected successfully; its length is that of the original")
    if dry.older:
        found.assumptions.append(
            f"{dry.older} replies are to prompts of an older program; they serve, and --renew would pay for them again"
        )
    return found


def room_offline(teacher: Teacher) -> Room:
    """The teacher's limits without a server: tokens of the local teacher are estimated from characters."""

    async def guess(call: Call) -> int:
        return _prompt_tokens(call)

    return room_of(teacher, guess)


def _of_the_budget(teacher: Teacher, spent: float, found: Estimate) -> list[str]:
    if not teacher.budget_usd:
        return []
    if found.usd is None:
        return ["a run would refuse teacher.budget_usd: there is no price to hold it by"]
    left = max(0.0, teacher.budget_usd - spent)
    enough = "enough" if found.usd <= left else "not enough: the run stops there and marks the rest over_budget"
    return [f"teacher.budget_usd = {teacher.budget_usd:g}, {spent:.4f} USD of it spent, {left:.4f} USD left: {enough}"]


def _prompt_tokens(call: Call) -> int:
    return round(sum(len(m["content"]) for m in call.messages) / _CHARS_PER_TOKEN) + 8 * len(call.messages)


def _reply_tokens(purpose: str, teacher: Teacher) -> int:
    table = _LOCAL_REPLY_TOKENS if teacher.model == LOCAL else _REPLY_TOKENS
    return min(table[purpose], teacher.max_tokens)


def _assumption(purpose: str, seen: _Seen, teacher: Teacher) -> str:
    if purpose in seen:
        return f"{purpose}: mean tokens of {seen[purpose][2]} replies of this model in the ledger"
    reply = _reply_tokens(purpose, teacher)
    like = "as the packaged model's on the demo" if teacher.model == LOCAL else "as long as the paper's"
    if reply == teacher.max_tokens:
        like = "teacher.max_tokens: longer replies are cut and not accepted"
    return f"{purpose}: {_CHARS_PER_TOKEN:g} characters a token, {reply} tokens a reply ({like})"
