"""`srt doctor --ping`: one small call that tests the teacher before a run. It reports; it changes no settings.

The call is sent like those of a run (model, key, parameters, form of the reply) and asks for one line. Like every paid
reply, its reply goes into the ledger, if there is a home.
"""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

from srt_assets.core.errors import StageError, UserError
from srt_assets.core.lake import Lake
from srt_assets.core.teacher import ends, grammar, ledger, local, thoughts
from srt_assets.core.teacher.answers import Answer
from srt_assets.core.teacher.call import LOCAL, Call, Prompter, call_key
from srt_assets.core.teacher.client import Client, connect
from srt_assets.core.teacher.engine import cost_of, ledger_row
from srt_assets.core.teacher.failures import Failure, classify
from srt_assets.core.teacher.health import span
from srt_assets.core.teacher.money import Prices, prices_of
from srt_assets.core.teacher.parse import parse
from srt_assets.core.teacher.unfit import halt
from srt_assets.settings import Settings, Teacher

PURPOSE = "ping"
_ASKED = "[Better Answer] The sky is blue. [End]"
_ASKED_AS_JSON = '{"critique": "short", "better_answer": "The sky is blue."}'
_MILLION = 1_000_000


class Told(NamedTuple):
    """One finding about the teacher. `level`: ok, warning or error; `remedy`: what to do about it."""

    level: Literal["ok", "warning", "error"]
    what: str
    remedy: str = ""


def ping(settings: Settings, lake: Lake) -> Iterator[Told]:
    """Make the call and report the findings. Blocks for at most teacher.timeout_s seconds; raises nothing."""
    teacher = settings.teacher
    try:
        with ExitStack() as stack:
            base = stack.enter_context(local.serve()) if teacher.model == LOCAL else ""
            client, prices = connect(teacher, base), prices_of(teacher)
            call = _call(teacher)
            book = stack.enter_context(ledger.Ledger(lake)) if lake.home.is_dir() else None
            answer, allowed, cost = asyncio.run(_ask(client, call, prices, book))
    except (UserError, StageError) as error:
        yield Told("error", error.message, error.remedy)
        return
    if isinstance(answer, Failure):
        yield _failed(answer, client)
        return
    yield from _speed(answer, client)
    yield from _price(prices, cost)
    yield from _room(client, allowed)
    yield _end(answer, teacher)
    yield _thoughts(answer)
    yield _form(answer, teacher)


def _call(teacher: Teacher) -> Call:
    prompter = Prompter(teacher)
    asked = _ASKED_AS_JSON if prompter.form == "json_schema" else _ASKED
    messages = [{"role": "user", "content": f"This is a test. Reply with this line and nothing else:\n{asked}"}]
    shapes: dict[str, Any] = {
        "json_schema": grammar.json_schema("response"),
        "grammar": grammar.gbnf("response", bounded=prompter.local),
    }
    shape = shapes.get(prompter.form)
    key = call_key(messages, prompter.identity, prompter.sampling, shape)
    facts = {"model_id": prompter.identity, "temperature": float(teacher.temperature), "reply_format": prompter.form}
    return Call(key, "", PURPOSE, messages, shape, facts)


async def _ask(
    client: Client, call: Call, prices: Prices, book: ledger.Ledger | None
) -> tuple[Answer | Failure, int, float | None]:
    """The answer or failure, the number of tokens that it could have, and its cost in USD."""
    try:
        allowed = await client.room.allowance(call) or client.teacher.max_tokens
        try:
            answer: Answer | Failure = await client.complete(call, allowed)
        except Exception as error:  # noqa: BLE001 - every failure is reported; `classify` knows its kind
            answer = classify(error)
        cost = cost_of(answer, prices, prices.most(call.size_bytes, allowed))
        if book is not None and (isinstance(answer, Answer) or answer.perhaps_billed):
            row = ledger_row(client.teacher, call, allowed, 1) | answer.columns
            row["cost_usd"] = cost
            await book.append(row | ({"latency_s": answer.latency_s} if isinstance(answer, Answer) else {}))
        return answer, allowed, cost
    finally:
        await client.close()


def _failed(failure: Failure, client: Client) -> Told:
    where = client.api_base or f"the provider of {client.teacher.model}"
    if failure.action == "stop" or failure.kind == "bad_request":
        error = halt(failure, client.teacher)
        assert isinstance(error, UserError | StageError)
        return Told("error", error.message, error.remedy)
    if failure.action == "throttled":
        asked = f", asks to wait {span(failure.retry_after_s)}" if failure.retry_after_s else ""
        return Told("error", f"the teacher at {where} is too busy to answer{asked}: {failure.told}", "ask again later")
    if failure.kind == "unreachable":
        remedy = "start it, or correct teacher.api_base"
        return Told("error", f"the teacher at {where} cannot be reached: {failure.message}", remedy)
    remedy = "raise teacher.timeout_s" if failure.kind == "timeout" else "look at the server, or ask again later"
    return Told("error", f"the teacher at {where} gives no reply: {failure.told}", remedy)


def _speed(answer: Answer, client: Client) -> Iterator[Told]:
    tokens = answer.completion_tokens
    speed = f", {tokens / answer.latency_s:.0f} tokens/s" if tokens and answer.latency_s else ""
    where = f" at {client.api_base}" if client.api_base else ", its key is good"
    yield Told("ok", f"teacher {client.teacher.model}{where}: answered in {answer.latency_s:.1f} s{speed}")
    if answer.prompt_tokens is None or tokens is None:
        what = "it does not say how many tokens a call takes: each counts at the most it can cost"
        yield Told("warning", what, "see if the server can be told to send its usage")


def _price(prices: Prices, cost: float | None) -> Iterator[Told]:
    if prices.input is None or prices.output is None:
        remedy = "set teacher.usd_per_million_input and teacher.usd_per_million_output"
        yield Told("warning", "its price is not known: costs stay empty", remedy)
        return
    cached = f", {prices.cached * _MILLION:g} cached" if prices.cached is not None else ""
    per_million = f"{prices.input * _MILLION:g} in, {prices.output * _MILLION:g} out{cached}"
    yield Told(
        "ok", f"price (USD per million tokens): {per_million}; this call {cost or 0.0:.6f} USD ({prices.source})"
    )


def _room(client: Client, allowed: int) -> Iterator[Told]:
    wanted = client.teacher.max_tokens
    less = f", less than teacher.max_tokens = {wanted}: more it cannot give" if allowed < wanted else ""
    context = client.room.context
    size = f", request and reply {context} together" if context else ""
    yield Told("ok", f"a reply may have {allowed} tokens{less}{size}")
    if context is None:
        yield Told("warning", "its context size is not known", "set teacher.context_tokens, or too long records fail")


def _end(answer: Answer, teacher: Teacher) -> Told:
    native = answer.native_finish_reason
    end = ends.judged(answer.finish_reason, native, teacher.good_finish_reasons)
    if end == ends.STOP:
        return Told("ok", f"finish reason {native!r}: a good end")
    if end == ends.UNKNOWN:
        said = f"finish reason {native!r} is not known to be a good end" if native else "it gives no finish reason"
        return Told("error", f"{said}: no reply that ends so is taken", f"if they are whole, set {ends.remedy(native)}")
    if end == ends.LENGTH:
        return Told(
            "error", f"finish reason {native!r}: {(answer.note or '').partition(':')[0]}", "raise teacher.max_tokens"
        )
    return Told("error", f"finish reason {native!r}: a content filter held it back", "see what the provider filters")


def _thoughts(answer: Answer) -> Told:
    found = thoughts.marks_in(answer.text or "")
    spent = f" ({answer.reasoning_tokens} tokens)" if answer.reasoning_tokens else ""
    if found:
        return Told("ok", f"thoughts in the reply, between {' and '.join(map(repr, found))}{spent}: they are left out")
    if answer.thoughts:
        return Told("ok", f"thoughts in a field of their own{spent}: they are kept apart")
    if answer.reasoning_tokens:
        return Told("ok", f"thoughts that it does not show{spent}: they count in teacher.max_tokens")
    return Told("ok", "no thoughts")


def _form(answer: Answer, teacher: Teacher) -> Told:
    status = parse("response", Prompter(teacher).form, answer.text, ends.STOP).status
    if status == "ok":
        return Told("ok", "its reply has the form that was asked for")
    text = " ".join((answer.text or "").split())[:60]
    return Told(
        "warning", f"its reply cannot be used ({status}): {text!r}", "try another teacher.reply_format or model"
    )
