"""The common part of both reflection assets: from records to rows of `candidates`.

Rows are made from the records and the ledger alone. The stage first makes the rows that need no call, then makes all
missing calls, whose replies go into the ledger, and then the remaining rows. A changed parser therefore costs nothing,
and a killed run leaves no incomplete row.
"""

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

from srt_assets.core.errors import StageError
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.manifest import Manifest
from srt_assets.core.outcome import Description, Made
from srt_assets.core.stage import Stage, Work
from srt_assets.core.tables import rows_as_dicts
from srt_assets.core.teacher import ledger, sealing
from srt_assets.core.teacher.asking import Asking
from srt_assets.core.teacher.call import Prompter
from srt_assets.core.teacher.engine import Tally
from srt_assets.core.teacher.lookup import Lookup
from srt_assets.core.teacher.prompts import PROMPT_VERSION
from srt_assets.core.teacher.rows import TABLE, Rows
from srt_assets.core.teacher.survey import Subject, Survey
from srt_assets.settings import Settings

# Raise it when the same replies should give other rows (parser, statuses, columns).
VERSION = "3"
# Rows with these statuses could change under other limits. If there are none, the limits are left out of the
# fingerprint.
_LIMITED = ("call_failed", "over_budget", "too_long", "truncated_reply")
# Counts of rows that depend on teacher.good_finish_reasons.
_BY_THEIR_END = ("unknown_finish", "ended_by_setting")


class Reflection(Stage):
    """A stage that asks the teacher: its partition of `candidates`, its upstream tables, and the rows to make."""

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
        """Content hashes of the tables that the rows are made from. StageError if one has not been made."""

    # Of `RowsToMake`: rows of the query that belong to one record.
    together: ClassVar[int] = 1

    @abstractmethod
    def query(self, lake: Lake, where: str = "true") -> str:
        """SQL for the records: see `RowsToMake`. `where`: a condition on `sample_id`."""

    @abstractmethod
    def subjects(self, *rows: tuple) -> tuple[Subject, ...]:
        """The rows to make from a record: see `RowsToMake`."""

    def wanted(self, settings: Settings, lake: Lake, student: str = "") -> Fingerprint:
        """The fingerprint that the partition should have. Limits count only if they affected a row."""
        manifest = lake.manifest(TABLE, self.share)
        return _fingerprint(settings, self, self.upstream(lake), manifest.stats if manifest else {})

    def make(self, work: Work) -> Made:
        """Make the missing calls, then write the rows."""
        settings, lake = work.settings, work.lake
        started = time.monotonic()
        prompter = Prompter(settings.teacher)
        tally, asked, upstream = Tally(), 0, None
        # The calls may take hours. If the records change meanwhile, make the calls that they now need too.
        while upstream != (upstream := self.upstream(lake)):
            asking = Asking(settings.teacher, prompter, self.share)
            with Survey(lake, self, prompter, work.renew) as survey:
                rows = Rows(survey, prompter)
                try:
                    asking.run(lake, survey, rows, work.progress)
                finally:
                    sealing.seal(lake)
                tally, asked = tally.plus(asking.tally), asked + asking.asked
                if survey.open:
                    with Lookup(lake) as lookup:
                        deque(rows.take(survey.settled(lookup, None), asking.unanswered), maxlen=0)
                parts = rows.parts(lake, self.share)
        counts, unknown = rows.counts, rows.unknown_words
        stats = {
            **{name: n for name, n in sorted(counts.items()) if name != "from_teacher"},
            **({"unknown_finish_reasons": unknown} if unknown else {}),
            "calls_paid": tally.calls,
            "cache_hits": max(0, counts["from_teacher"] - asked),
            "prompt_tokens": tally.prompt_tokens,
            "completion_tokens": tally.completion_tokens,
            # An unknown price must not appear as 0.
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
        # The two values differ, so that the next run finds the asset out of date and asks again.
        facts["teacher_busy"] = "not answered" if made else "to be asked again"
    if any(stats.get(name) for name in _BY_THEIR_END):
        facts["good_finish_reasons"] = sorted({word.casefold() for word in teacher.good_finish_reasons})
    return Fingerprint.of(**facts)


def upstream_hash(lake: Lake, table: str, partition: str | None, asset: str) -> Manifest:
    """The manifest of an upstream artefact. StageError if it has not been made."""
    manifest = lake.manifest(table, partition)
    if manifest is None:
        raise StageError(f"{asset} has not been made yet", f"run `srt run {asset}` first")
    return manifest
