"""What is still to pay: calls that no reply in the ledger serves, their tokens and price, and what that assumes."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from srt_assets.core.lake import Lake
from srt_assets.core.teacher import instructions, responses, stage
from srt_assets.core.teacher.ask import Ask, Room, must_ask
from srt_assets.core.teacher.call import LOCAL, Call, Prompter, Source
from srt_assets.core.teacher.client import check_model, room_of
from srt_assets.core.teacher.lookup import Lookup
from srt_assets.core.teacher.money import prices_of
from srt_assets.core.teacher.rows import Rows
from srt_assets.core.teacher.steps import Step
from srt_assets.core.teacher.survey import Subject, Survey
from srt_assets.settings import Settings, Teacher

# Lengths of replies where the ledger knows none of this model: critique and texts as long as the paper's (table 6).
_REPLY_TOKENS = {"reflect_instruction": 700, "reflect_response": 500, "reflect_response_of_reflected": 550}
_LOCAL_REPLY_TOKENS = {"reflect_instruction": 170, "reflect_response": 140, "reflect_response_of_reflected": 140}
_ENOUGH_REPLIES = 20
_OF_REFLECTED = "reflect_response_of_reflected"
_CHARS_PER_TOKEN = 4.0


@dataclass
class Estimate:
    """`usd` is None if the model's price is not known. `assumptions` says where the numbers come from."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = 0.0
    by_purpose: dict[str, int] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)


# Mean tokens of a prompt and of a reply, and of how many replies, by purpose.
_Seen = dict[str, tuple[float, float, int]]


def estimate(settings: Settings, lake: Lake) -> Estimate:
    """Calls, tokens and USD that a run of both reflection assets would still need.

    StageError without raw records, UserError for a model that no provider has.
    """
    teacher = settings.teacher
    check_model(teacher)
    found = Estimate()
    with Lookup(lake) as lookup:
        means = lookup.mean_tokens(teacher.model)
        seen = {purpose: (prompt, reply, n) for purpose, prompt, reply, n in means if n >= _ENOUGH_REPLIES}
        dry = _DryRun(settings, lake, lookup)
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


class _DryRun:
    """Both assets, without asking. `older`: replies that serve although an older program asked for them."""

    def __init__(self, settings: Settings, lake: Lake, lookup: Lookup) -> None:
        self.older = 0
        self._settings, self._lake, self._lookup = settings, lake, lookup
        self._teacher = settings.teacher
        self._prompter, self._room = Prompter(self._teacher), room_offline(self._teacher)

    def calls(self) -> Iterator[tuple[str, Call]]:
        """The calls a run would make; those about instructions that are still to come, by the texts of the original."""
        lake, prompter = self._lake, self._prompter
        stage.upstream_hash(lake, "raw_records", None, "raw_dataset")
        if self._is_made(instructions.STAGE):
            if not self._is_made(responses.STAGE):
                with Survey(lake, responses.STAGE, prompter) as survey:
                    yield from self._answers(survey)
            return
        with Survey(lake, instructions.STAGE, prompter) as survey:
            rows = Rows(survey, prompter)
            deque(rows.take(self._settled(survey, self._teacher.max_tokens)), maxlen=0)
            for source, call in self._missing(survey):
                yield source.purpose, call
                id, texts = source.sample_id, source.texts
                yield _OF_REFLECTED, prompter.call(Source(id, _OF_REFLECTED, *texts), key="not needed")
            deque(rows.take(self._settled(survey, None)), maxlen=0)
            rows.flush()
            yield from self._answers(Survey(lake, _OfRows(), prompter, con=survey.con))

    def _is_made(self, plan: stage.Reflection) -> bool:
        """A run would leave the asset as it is. Its replies to older prompts are counted."""
        made = plan.right(self._lake, "", plan.wanted(self._settings, self._lake))
        if made:
            version = self._prompter.facts["prompt_version"]
            self.older += self._lookup.older_replies(self._lake.source(stage.TABLE, plan.share), version)
        return made is not None

    def _answers(self, survey: Survey) -> Iterator[tuple[str, Call]]:
        deque(self._settled(survey, self._teacher.max_tokens), maxlen=0)
        yield from ((source.purpose, call) for source, call in self._missing(survey))

    def _settled(self, survey: Survey, max_tokens: int | None) -> Iterator[tuple[int, Subject, Step]]:
        for place, subject, step in survey.settled(self._lookup, max_tokens):
            self.older += sum(turn.is_older for turn in step.turns) if max_tokens else 0
            yield place, subject, step

    def _missing(self, survey: Survey) -> Iterator[tuple[Source, Call]]:
        for step in survey.missing(self._lookup, self._teacher.api_base):
            turn = step.missing(self._teacher.max_tokens)
            assert turn is not None
            self.older += sum(other.is_older for other in step.turns if other is not turn)
            if isinstance(must_ask(turn, _at_once(self._room, turn.call), self._teacher.max_attempts), Ask):
                yield step.source, turn.call


class _OfRows(responses.ReflectedResponses):
    """The second asset's rows, from what the survey of the first one has given so far."""

    def query(self, lake: Lake) -> str:
        return responses.query_of("rows")


def room_offline(teacher: Teacher) -> Room:
    """The teacher's room as far as can be told without asking anybody: the local one's tokens are guessed."""

    async def guess(call: Call) -> int:
        return _prompt_tokens(call)

    return room_of(teacher, guess)


def _at_once(room: Room, call: Call) -> int | None:
    """The allowance in a room that only guesses, and so never waits: an event loop would take longer than all else."""
    try:
        room.allowance(call).send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a room without a teacher waits for nothing")


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
