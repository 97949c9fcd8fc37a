"""`srt why-call`: why a call is a cache hit or not, and what has changed since the record was last asked about."""

import asyncio
from dataclasses import dataclass

from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.teacher import instructions, responses, stage
from srt_assets.core.teacher.ask import Ask, Room, Turn, must_ask
from srt_assets.core.teacher.call import Call, Prompter, Source
from srt_assets.core.teacher.estimate import room_offline
from srt_assets.core.teacher.known import Reply
from srt_assets.core.teacher.lookup import Lookup
from srt_assets.core.teacher.steps import Step, resolve
from srt_assets.settings import Settings, Teacher

# Columns of the ledger that are part of the key, with their names for people.
_PARTS_OF_THE_KEY = {
    "temperature": "teacher.temperature",
    "reply_format": "teacher.reply_format",
    "parameters": "teacher.reasoning_effort or teacher.parameters",
    "prompt_version": "the prompt texts of this program",
    "source_key": "the texts shown to the teacher",
}
_BY_ITS_END = ("unknown_finish", "truncated_reply")
_CANDIDATES = {
    "reflect_instruction": "reflected_instruction",
    "reflect_response": "reflected_response",
    "reflect_response_of_reflected": "reflected_both",
}


@dataclass(frozen=True)
class Finding:
    """One call of a record. `verdict` is hit, cut, failed, not_asked, new or changed; `why` is for people."""

    purpose: str
    call_key: str
    verdict: str
    why: str


def explain(settings: Settings, lake: Lake, sample_id: str) -> list[Finding]:
    """A finding for each call that the record needs now. UserError if there is no such record."""
    prompter = Prompter(settings.teacher)
    sample_id = sample_id.encode(errors="replace").decode()  # DuckDB refuses text that is not valid UTF-8
    sources = []
    instructions_made = lake.manifest(stage.TABLE, instructions.PARTITION) is not None
    with lake.connect() as con:
        for plan in (instructions.STAGE, responses.STAGE) if instructions_made else (instructions.STAGE,):
            found = con.execute(plan.query(lake, "sample_id = ?"), [sample_id]).fetchall()
            sources += [subject.source for subject in (plan.subjects(*found) if found else ()) if subject.source]
        rows = con.execute(f"SELECT candidate, status FROM {stage.TABLE} WHERE sample_id = ?", [sample_id]).fetchall()
    if not sources:
        raise UserError(
            f"no record has the sample_id {sample_id!r}",
            "look it up: srt sql 'FROM raw_records LIMIT 5'; an edited record has another one, the hash of its texts",
        )
    statuses: dict[str, str] = dict(rows)
    with Lookup(lake) as lookup:
        steps = resolve(lookup, prompter, sources, settings.teacher.api_base)
        room = room_offline(settings.teacher)
        return [_finding(step, lookup, settings.teacher, statuses, room) for step in steps]


def _finding(step: Step, lookup: Lookup, teacher: Teacher, statuses: dict[str, str], room: Room) -> Finding:
    if turn := step.missing(teacher.max_tokens):
        verdict, why = _why_missing(turn, step.source, lookup, teacher, statuses, room)
        return Finding(turn.call.purpose, turn.call.key, verdict, why)
    if asked := next((turn for turn in reversed(step.turns) if turn.is_older), None):
        return _of_an_older_program(asked, step.source, lookup)
    call = step.turns[-1].call
    status = "after a correction turn" if step.correction else step.parsed.status if step.parsed else ""
    note = step.decisive.note if step.decisive and status in _BY_ITS_END else ""
    return Finding(call.purpose, call.key, "hit", f"the ledger holds its reply ({status}{': ' if note else ''}{note})")


def _why_missing(
    turn: Turn, source: Source, lookup: Lookup, teacher: Teacher, statuses: dict[str, str], room: Room
) -> tuple[str, str]:
    """Verdict and reason for a turn without a reply that can certainly be used."""
    call, reply = turn.call, turn.reply
    allowed = asyncio.run(room.allowance(call))
    ask = must_ask(turn, allowed, teacher.max_attempts)
    if allowed is None:
        return "not_asked", "no run asks it: it does not fit into the teacher's context (teacher.context_tokens)"
    if isinstance(ask, Reply):
        return "hit", f"the ledger holds its reply, cut at {ask.max_tokens} tokens; there is room for no more"
    if reply is not None:
        return "cut", f"its reply was cut at {reply.max_tokens} tokens; now {allowed} are allowed"
    if tried := turn.tried.get(allowed):
        left = teacher.max_attempts - tried.count if isinstance(ask, Ask) else 0
        told = f"{tried.kind} ({tried.message[:200]})"
        return "failed", f"{tried.count} attempts failed, the last: {told}; {left} left"
    if statuses.get(_CANDIDATES[source.purpose]) == "over_budget":
        return "not_asked", "the last run did not ask: teacher.budget_usd was used up"
    if statuses.get(_CANDIDATES[source.purpose]) == "teacher_busy":
        return "not_asked", "the teacher was too busy to answer the last run for it; the next run asks again"
    before = lookup.last(sample_id=source.sample_id, purpose=call.purpose)
    if before is None:
        return "new", "nothing like it was ever asked"
    changes = "; ".join(_changes(call, teacher.model, before))
    return "changed", f"asked on {before['created_at']:%Y-%m-%d %H:%M} UTC, but since then {changes}"


def _of_an_older_program(turn: Turn, source: Source, lookup: Lookup) -> Finding:
    assert turn.reply is not None
    row = lookup.last(call_key=turn.reply.key) or {}
    prompts = row.get("prompt_version") != turn.call.facts["prompt_version"]
    differs = "prompts differ" if prompts else "schema, grammar or sampling differs"
    asset = "reflected_instructions" if source.kind == "instruction" else "reflected_responses"
    why = f"asked by an older program (its {differs}); `srt run {asset} --renew` would pay for it again"
    return Finding(turn.call.purpose, turn.reply.key, "hit", why)


def _changes(call: Call, model: str, before: dict[str, object]) -> list[str]:
    changes = []
    if before["model"] != model:
        changes.append(f"teacher.model changed from {before['model']!r} to {model!r}")
    elif before["model_id"] not in (None, call.facts["model_id"]):
        changes.append("the model file of the local teacher changed")
    for column, name in _PARTS_OF_THE_KEY.items():
        old, new = before[column], call.facts[column]
        if old == new or (old is None and column != "parameters"):
            continue
        hashed = column in ("prompt_version", "source_key")
        changes.append(f"{name} changed" if hashed else f"{name} changed from {old!r} to {new!r}")
    return changes or ["the schema or grammar of the reply, or the sampling of the local teacher, changed"]
