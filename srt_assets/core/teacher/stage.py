"""From records to rows of `candidates`: what both reflection assets share.

First everything that is missing is asked (`_ask`), so that it lies in the ledger; then the rows are made from the
records and the ledger alone (`_settle`). A changed parser therefore costs nothing, and a killed run leaves no half row.
"""

import functools
import itertools
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from srt_assets.core.errors import StageError
from srt_assets.core.hashing import Fingerprint, content_key
from srt_assets.core.lake import Lake
from srt_assets.core.manifest import Manifest
from srt_assets.core.outcome import Description, Made
from srt_assets.core.progress import Fact, Progress
from srt_assets.core.stage import Stage, Work
from srt_assets.core.tables import rows_as_dicts
from srt_assets.core.teacher import ends, ledger, sealing
from srt_assets.core.teacher.answers import THOUGHTS_USED_UP
from srt_assets.core.teacher.ask import Turn, Verdict
from srt_assets.core.teacher.call import Prompter, Source
from srt_assets.core.teacher.engine import Engine, Tally
from srt_assets.core.teacher.flow import Job
from srt_assets.core.teacher.lookup import Lookup, Reply
from srt_assets.core.teacher.parse import CORRECTABLE, Parsed
from srt_assets.core.teacher.prompts import PROMPT_VERSION
from srt_assets.core.teacher.steps import Step, read, resolve
from srt_assets.settings import Settings, Teacher

TABLE = "candidates"
# Raise it when the same replies are to give other rows (parser, statuses, columns).
VERSION = "3"
# Records looked up together. Each time the whole ledger is read: with 500, half the time of a run that asks nothing
# (16,000 records, 48,000 replies) went there, and the more the larger the set.
CHUNK = 2000
PART_ROWS = 20_000
# Rows with one of these could come out otherwise under other limits; without any, limits do not matter.
_LIMITED = ("call_failed", "over_budget", "too_long", "truncated_reply")
# Rows that teacher.good_finish_reasons made, or could make, what they are.
_BY_THEIR_END = ("unknown_finish", "ended_by_setting")


@dataclass(frozen=True)
class Subject:
    """One candidate row to make: from `source` through the teacher, or, without one, straight to `status`."""

    sample_id: str
    dataset: str
    candidate: str
    source: Source | None
    status: str = "ok"
    texts: tuple[str, str, str] | None = None


class Reflection(Stage):
    """A stage that asks the teacher: its share of `candidates`, what is upstream of it, which rows it is to make."""

    tables = (TABLE,)
    feeds = (ledger.TABLE,)
    version = VERSION
    group = "reflection"
    kinds = frozenset({"litellm", "parquet"})
    pool = "teacher_api"
    share: ClassVar[str]
    costs_money = True
    facts_of_program = frozenset({"version", "prompts"})

    @abstractmethod
    def upstream(self, lake: Lake) -> dict[str, str]:
        """Content hashes of what the rows are made from. StageError if it has not been made."""

    @abstractmethod
    def subjects(self, lake: Lake) -> Iterator[list[Subject]]:
        """The rows to make, in chunks."""

    def wanted(self, settings: Settings, lake: Lake, student: str = "") -> Fingerprint:
        """What the share should be made of. Limits count only where a row was limited by them."""
        manifest = lake.manifest(TABLE, self.share)
        return _fingerprint(settings, self, self.upstream(lake), manifest.stats if manifest else {})

    def make(self, work: Work) -> Made:
        """Ask what is missing, then write the rows."""
        settings, lake = work.settings, work.lake
        started = time.monotonic()
        prompter = Prompter(settings.teacher)
        tally, asked, upstream = Tally(), 0, None
        # Asking takes hours: records that changed meanwhile have rows that nobody asked for, so they are asked now.
        while upstream != (upstream := self.upstream(lake)):
            try:
                done = _ask(settings, lake, self, prompter, work.progress, work.renew)
            finally:
                sealing.seal(lake)
            tally, asked = tally.plus(done.tally), asked + len(done.missed)
            parts, counts, unknown = _settle(lake, self, prompter, done.unanswered, work.renew)
        stats = {
            **{name: n for name, n in sorted(counts.items()) if name != "from_teacher"},
            **({"unknown_finish_reasons": unknown} if unknown else {}),
            "calls_paid": tally.calls,
            "cache_hits": max(0, counts["from_teacher"] - asked),
            "prompt_tokens": tally.prompt_tokens,
            "completion_tokens": tally.completion_tokens,
            # Never 0 for "nobody knows".
            "cost_usd": round(tally.cost_usd, 6) if tally.priced else f"unknown: {settings.teacher.model} has no price",
            "throttled": tally.throttled,
            **{f"failed_{kind}": n for kind, n in sorted(tally.failures.items())},
            "seconds_calls": round(tally.seconds, 3),
            "seconds_all": round(time.monotonic() - started, 3),
        }
        return Made({TABLE: parts}, stats, _fingerprint(settings, self, upstream, stats, made=True))

    def describe(self, lake: Lake, student: str = "") -> Description:
        """Counts by status, tokens, money, calls; five rewritten rows; lengths of the accepted responses."""
        manifest = lake.manifest(TABLE, self.share)
        source = lake.source(TABLE, self.share)
        with lake.connect() as con:
            rows = rows_as_dicts(
                con.execute(
                    "SELECT sample_id, candidate, status, left(instruction, 200) AS instruction, "
                    f"left(input, 200) AS input, left(response, 200) AS response FROM {source} "
                    "WHERE candidate <> 'original' ORDER BY status <> 'ok', sample_id, candidate LIMIT 5"
                )
            )
            lengths = con.execute(
                f"SELECT length(response)::DOUBLE FROM {source} WHERE status = 'ok' AND candidate <> 'original' "
                "USING SAMPLE reservoir(20000 ROWS) REPEATABLE (0)"
            ).fetchall()
        histogram = ("length of accepted responses (characters)", [n for (n,) in lengths])
        return Description(dict(manifest.stats) if manifest else {}, rows, histogram)


def _fingerprint(
    settings: Settings, plan: Reflection, upstream: dict[str, str] | None, stats: Mapping[str, Any], made: bool = False
) -> Fingerprint:
    teacher = settings.teacher
    prompter = Prompter(teacher)
    facts: dict[str, Any] = {
        "stage": plan.share,
        "version": VERSION,
        "prompts": PROMPT_VERSION,
        "model": prompter.identity,
        "form": prompter.form,
        "sampling": prompter.sampling,
        "upstream": upstream,
    }
    if any(stats.get(status) for status in _LIMITED):
        limits = {"max_tokens", "context_tokens", "max_attempts", "budget_usd", "api_base"}
        facts["limits"] = teacher.model_dump(include=limits)
    if stats.get("teacher_busy"):
        # As it is made it differs from what is wanted, so that the next run asks.
        facts["teacher_busy"] = "not answered" if made else "to be asked again"
    if any(stats.get(name) for name in _BY_THEIR_END):
        facts["good_finish_reasons"] = sorted({word.casefold() for word in teacher.good_finish_reasons})
    return Fingerprint.of(**facts)


def _ask(
    settings: Settings, lake: Lake, plan: Reflection, prompter: Prompter, progress: Progress, renew: bool = False
) -> "_Asking":
    """Make every missing call. Gives the tally, why calls stayed unanswered, and which were needed.

    `renew`: what only an older program asked is asked anew. Give the same to `_settle`.
    """
    sealing.seal(lake)
    total = sum(len(chunk) for chunk in sources_of(plan.subjects(lake)))
    asking = _Asking(settings.teacher, prompter, renew)
    with Lookup(lake) as lookup:
        steps = asking.steps(lookup, plan.subjects(lake))
        first = next(steps, None)
        if first is None:
            progress(total, total, "records")
            return asking
        # Only now: no call to make, no LiteLLM to import, no server to start.
        if settings.teacher.batch:
            from srt_assets.core.teacher.batch import ask_batches

            lookup.close()
            open_steps = lambda look: asking.steps(look, plan.subjects(lake))  # noqa: E731
            ask_batches(settings.teacher, lake, plan.share, open_steps, asking.unanswered, asking.tally, progress)
            return asking
        from srt_assets.core.teacher.session import ask_all

        started = time.monotonic()

        def report(waiting: str = "") -> None:
            tally = asking.tally
            elapsed = max(1e-6, time.monotonic() - started)
            facts: dict[str, Fact] = {"calls": tally.calls, "tokens_per_s": tally.completion_tokens / elapsed}
            if tally.cost_usd:
                facts["cost_usd"] = round(tally.cost_usd, 4)
            if tally.throttled:
                facts["throttled"] = tally.throttled
            if waiting:
                facts = {"waiting": waiting}
            progress(min(total, asking.hits + asking.done), total, "records", **facts)

        all_steps = itertools.chain([first], steps)
        jobs: Iterator[list[Job]] = ([functools.partial(asking.solve, step) for step in chunk] for chunk in all_steps)
        ask_all(settings.teacher, lake, lookup, jobs, asking.tally, report)
    progress(total, total, "records")
    return asking


def sources_of(chunks: Iterator[list[Subject]]) -> Iterator[list[Source]]:
    """The pairs to reflect on, chunk by chunk."""
    for chunk in chunks:
        if found := [subject.source for subject in chunk if subject.source]:
            yield found


@dataclass
class _Asking:
    """What one run asks, and what became of it."""

    teacher: Teacher
    prompter: Prompter
    renew: bool
    tally: Tally = field(default_factory=Tally)
    unanswered: dict[str, Verdict] = field(default_factory=dict)
    hits: int = 0
    done: int = 0
    missed: set[bytes] = field(default_factory=set)

    def steps(self, lookup: Lookup, subjects: Iterator[list[Subject]]) -> Iterator[list[Step]]:
        """The steps that miss a call, chunk by chunk; of records that need the same call (a blank input), the first."""
        yielded: set[bytes] = set()
        for sources in sources_of(subjects):
            steps = resolve(lookup, self.prompter, sources, self.teacher.api_base, self.renew)
            missing: list[Step] = []
            for step in steps:
                key = bytes.fromhex(step.first.call.key)
                if key not in yielded and step.missing(self.teacher.max_tokens):
                    yielded.add(key)
                    self.missed.add(key)
                    missing.append(step)
            self.hits += len(steps) - len(missing)
            if missing:
                yield missing

    async def solve(self, step: Step, engine: Engine) -> None:
        """Ask the call, and once more with a changed prompt if its reply cannot be read."""
        turn = step.missing(self.teacher.max_tokens)
        assert turn is not None
        answer = await engine.ask(turn)
        if isinstance(answer, Reply) and turn is step.first:
            source, parsed = step.source, read(step.source, self.prompter, answer)
            if parsed.status in CORRECTABLE and not engine.stopping:
                turn = Turn(self.prompter.correction(source, turn.call, answer.text or "", parsed.status))
                answer = await engine.ask(turn)
        if isinstance(answer, str):  # a verdict
            self.unanswered[turn.call.key] = answer
        self.done += 1


def _settle(
    lake: Lake, plan: Reflection, prompter: Prompter, unanswered: dict[str, Verdict], renew: bool = False
) -> tuple[list[str], Counter[str], str]:
    """Write the slice's rows from the records and the ledger. Every subject gets its row, whatever happened.

    Gives the parts, counts, and the finish reasons that nobody knows, with their numbers, as a text.
    With `renew`, a call that was to be asked anew and has no reply is unanswered: the older reply does not step in.
    """
    counts: Counter[str] = Counter(original_rows=0, from_teacher=0)
    words: Counter[str] = Counter()
    parts: list[str] = []
    rows: list[dict[str, Any]] = []
    with Lookup(lake) as lookup:
        for chunk in plan.subjects(lake):
            sources = [subject.source for subject in chunk if subject.source]
            steps = iter(resolve(lookup, prompter, sources, renew=renew))
            for subject in chunk:
                if subject.source:
                    counts["from_teacher"] += 1
                    step = next(steps)
                    parsed, key = step.result(prompter, unanswered)
                    if any(turn.is_older for turn in step.turns):
                        counts["replies_to_older_prompts"] += 1
                    if decisive := step.decisive:
                        _count_ends(counts, words, parsed, decisive)
                    row = _row(subject, parsed.status, _texts(subject.source, parsed), key)
                else:
                    row = _row(subject, subject.status, subject.texts, None)
                    counts["original_rows"] += subject.candidate == "original"
                if subject.candidate != "original":
                    counts[row["status"]] += 1
                rows.append(row)
            if len(rows) >= PART_ROWS:
                parts.append(lake.write_part(TABLE, rows, plan.share))
                rows = []
    if rows or not parts:
        parts.append(lake.write_part(TABLE, rows, plan.share))
    return parts, counts, ", ".join(f"{word or 'none'} ({n})" for word, n in words.most_common())


def _count_ends(counts: Counter[str], words: Counter[str], parsed: Parsed, reply: Reply) -> None:
    """Count what the end of a reply did to its row; `words`: finish reasons that nobody knows."""
    if parsed.no_end_marker:
        counts["no_end_marker"] += 1
    if (reply.note or "").startswith(THOUGHTS_USED_UP):
        counts["thoughts_used_up_tokens"] += 1
    if parsed.status == "unknown_finish":
        words[reply.native_finish_reason or ""] += 1
    elif reply.finish_reason == ends.UNKNOWN and reply.native_finish_reason is not None:
        counts["ended_by_setting"] += 1


def _texts(source: Source, parsed: Parsed) -> tuple[str, str, str] | None:
    if parsed.status != "ok" or parsed.response is None:
        return None
    if parsed.instruction is not None:
        return parsed.instruction, "", parsed.response
    return source.instruction, source.input, parsed.response


def _row(subject: Subject, status: str, texts: tuple[str, str, str] | None, call_key: str | None) -> dict[str, Any]:
    return {
        "sample_id": subject.sample_id,
        "dataset": subject.dataset,
        "candidate": subject.candidate,
        **dict(zip(("instruction", "input", "response"), texts or (None, None, None), strict=True)),
        "status": status,
        "call_key": call_key,
        "content_key": content_key(*texts) if texts else None,
    }


def upstream_hash(lake: Lake, table: str, partition: str | None, asset: str) -> Manifest:
    """The manifest of an upstream artefact. StageError if it has not been made."""
    manifest = lake.manifest(table, partition)
    if manifest is None:
        raise StageError(f"{asset} has not been made yet", f"run `srt run {asset}` first")
    return manifest
