"""Why a call is a hit or not: what the ledger holds for a record, and what differs from what is wanted now."""

from dataclasses import dataclass

from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.teacher import instructions, responses, stage
from srt_assets.core.teacher.call import Prompter
from srt_assets.core.teacher.lookup import Lookup
from srt_assets.core.teacher.prompts import PROMPT_VERSION
from srt_assets.core.teacher.steps import Step, resolve
from srt_assets.settings import Settings


@dataclass(frozen=True)
class Finding:
    """One call of a record. `verdict` is hit, cut, failed, new or changed; `why` is for people."""

    purpose: str
    call_key: str
    verdict: str
    why: str


def explain(settings: Settings, lake: Lake, sample_id: str) -> list[Finding]:
    """A finding for each call the record needs now. UserError if there is no such record."""
    prompter = Prompter(settings.teacher)
    sources = []
    for plan in (instructions.PLAN, responses.PLAN):
        if plan is responses.PLAN and lake.manifest(stage.TABLE, instructions.PARTITION) is None:
            continue
        sources += [s for chunk in stage.sources_of(plan.subjects(lake)) for s in chunk if s.sample_id == sample_id]
    if not sources:
        raise UserError(f"no record has the sample_id {sample_id!r}", "look it up: srt sql 'FROM raw_records LIMIT 5'")
    with Lookup(lake) as lookup:
        steps = resolve(lookup, prompter, sources, settings.teacher.api_base)
        return [_finding(step, lookup, settings) for step in steps]


def _finding(step: Step, lookup: Lookup, settings: Settings) -> Finding:
    wanted = settings.teacher.max_tokens
    call = step.missing(wanted)
    if call is None:
        used = step.correction if step.correction else step.call
        status = (step.parsed.status if step.parsed else "") if not step.correction else "after a correction turn"
        return Finding(used.purpose, used.key, "hit", f"the ledger holds its reply ({status})")
    reply = step.correction_reply if call is step.correction else step.reply
    if reply is not None:
        why = f"its reply was cut at {reply.max_tokens} tokens; now {wanted} are allowed"
        return Finding(call.purpose, call.key, "cut", why)
    if tried := step.tried.get((call.key, wanted)):
        left = 0 if tried.hopeless else settings.teacher.max_attempts - tried.count
        why = f"{tried.count} attempts failed, the last: {tried.kind} ({tried.message[:200]}); {max(0, left)} left"
        return Finding(call.purpose, call.key, "failed", why)
    others = lookup.of_sample(step.source.sample_id, call.purpose)
    if not others:
        return Finding(call.purpose, call.key, "new", "nothing like it was ever asked")
    model, version, when = others[0]
    changes = []
    if model != settings.teacher.model:
        changes.append(f"the model was {model!r}, now {settings.teacher.model!r}")
    if version != PROMPT_VERSION:
        changes.append(f"the prompt texts were version {version}, now {PROMPT_VERSION}")
    if not changes:
        changes.append("the texts shown to the teacher, the temperature, the reply format or the local model changed")
    return Finding(call.purpose, call.key, "changed", f"asked on {when:%Y-%m-%d %H:%M} UTC, but " + "; ".join(changes))
