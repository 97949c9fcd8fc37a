"""Settles verdicts that low precision could change: scores their records in fp32 before the decision.

This file fills the table `settled_scores`, whose rows replace those in low precision (`final_scores.sql`). Which
verdicts are close is in `close.py`; the error of a precision is in `scoring/precision.py`, the scoring itself in
`scoring/__init__.py`.
"""

import time
from contextlib import closing

import pyarrow as pa

from srt_assets.core import scoring
from srt_assets.core.errors import StageError
from srt_assets.core.manifest import Manifest
from srt_assets.core.outcome import Facts
from srt_assets.core.scoring import precision
from srt_assets.core.scoring import stage as scores
from srt_assets.core.scoring.precision import Error
from srt_assets.core.scoring.store import Known
from srt_assets.core.selection.close import close_sql
from srt_assets.core.selection.policies import policy_rows
from srt_assets.core.selection.rule import memory, rule_sql
from srt_assets.core.stage import Work
from srt_assets.core.students import checkpoints
from srt_assets.core.tables import TABLES
from srt_assets.settings import Settings

TABLE = "settled_scores"
VERSION = "1"
# The code version of the packaged `final_scores.sql`, which returns student_scores unchanged if nothing is settled.
FINAL_SCORES = "e92f4edb40ee2456"
_FLUSH_S = 60.0


def policies(settings: Settings, found: Manifest, student: str) -> list[dict]:
    """The policies whose close verdicts must be settled (rows of `policies`): the active one and the arms of training.

    `found`: the manifest of the student's scores. [] if all scores are in fp32. A policy for which an older program has
    already settled the scores is left out.
    """
    if not found.stats.get("low_precision_records"):
        return []
    names = {settings.selection.policy, *settings.training.arms}
    rows = policy_rows(settings.selection, settings.project.seed, student)
    settled = found.inputs.get(scores.SETTLED_FOR)
    return [row for row in rows if row["policy"] in names and row["policy_fingerprint"] != settled]


def settle(work: Work, found: Manifest) -> Facts:
    """Score close records in fp32 and count the changed verdicts. Drops settled scores that no longer count.

    StageError if the scores were made with other settings, because fp32 scores under those cannot be made now.
    """
    lake, student = work.lake, work.student
    if not (asked := policies(work.settings, found, student)):
        if not found.stats.get("low_precision_records") and lake.manifest(TABLE, work.partition):
            lake.commit(TABLE, [], fingerprint=work.want, code_version=VERSION, partition=work.partition)
        return {}
    if scores.STAGE.wanted(work.settings, lake, student).digest != found.fingerprint:
        raise StageError(
            f"the scores of student {student} were made with other settings, and close verdicts cannot be settled",
            f"bring them up to date: srt run selected_set --student {student}",
        )
    with closing(Settling(work, asked)) as settling:
        return settling.run(precision.of_stats(found.stats))


class Settling:
    """Finds and settles one student's close verdicts and stores the scores."""

    def __init__(self, work: Work, asked: list[dict]) -> None:
        self.work = work
        self.info = checkpoints.get(work.lake, work.student)
        way = scoring.way(work.settings, self.info, scoring.EXACT)
        self.rows = Known(work.lake, work.student, way, TABLE, memory(work.lake))
        self.con = self.rows.con
        # A top-k is left out: ranks are not settled, and they mean nothing among a few records.
        plain = {"active": True, "top_k_count": None, "top_k_share": None}
        schema = TABLES["policies"].arrow_schema
        self.con.register("asked_policies", pa.Table.from_pylist([row | plain for row in asked], schema=schema))
        self.scores = f"SELECT * FROM {work.lake.source(scores.TABLE, work.partition)}"
        self.flushed = time.monotonic()
        self.settled = 0

    def close(self) -> None:
        self.rows.close()

    def run(self, errors: precision.Errors) -> Facts:
        """Settle the close verdicts; returns the counts."""
        known = self._known()
        errors = {**errors, **self._measured_now(errors)}
        close = self.rows.choose("close", self._close(errors))
        self.con.execute(f"CREATE TABLE verdict_before AS {self._verdicts('close')}")
        self._score("close", close)
        [(flipped,)] = self.con.execute(
            f"SELECT count(DISTINCT sample_id) FROM verdict_before a JOIN ({self._verdicts('close')}) b "
            "USING (sample_id, policy) WHERE (a.chosen, a.kept) <> (b.chosen, b.kept)"
        ).fetchall()
        self._commit(complete=True)
        facts = {"records_settled": self.settled, "records_settled_before": known, "decisions_flipped": flipped}
        [(left,)] = self.con.execute(
            f"SELECT count(*) FROM close SEMI JOIN ({self._open()}) USING (sample_id)"
        ).fetchall()
        return facts | ({"records_not_settled": left} if left else {})

    def _known(self) -> int:
        [(n,)] = self.con.execute(f"SELECT count(DISTINCT sample_id) FROM ({self._settled()})").fetchall()
        return n

    def _settled(self) -> str:
        """SQL for the current rows of `settled_scores`."""
        known = self.rows.rows("done", "d.content_key IS NOT NULL")
        return f"SELECT * FROM ({known}) SEMI JOIN ({self._low()}) USING (sample_id, candidate, content_key)"

    def _low(self) -> str:
        return f"SELECT * FROM ({self.scores}) WHERE {precision.LOW}"

    def _open(self) -> str:
        """SQL for the scores in low precision that are not settled."""
        return f"SELECT * FROM ({self._low()}) ANTI JOIN done USING (content_key)"

    def _measured_now(self, errors: precision.Errors) -> dict[str, Error]:
        """Measure the errors of precisions missing in `errors`, because an older program measured them differently.

        StageError if an error cannot be measured, because then no verdict is known to be right.
        """
        found = {}
        present = self.con.execute(f"SELECT DISTINCT dtype FROM ({self._low()})").fetchall()
        for dtype in sorted({dtype for (dtype,) in present} - set(errors)):
            low = f"SELECT * FROM ({self._low()}) WHERE dtype = '{dtype}'"
            some = f"SELECT DISTINCT sample_id FROM ({low}) ORDER BY hash(sample_id)"
            samples = self.rows.choose("measured", f"{some} LIMIT {precision.MEASURED_RECORDS}")
            [(done,)] = self.con.execute(
                f"SELECT count(DISTINCT sample_id) FROM ({low}) SEMI JOIN done USING (content_key)"
            ).fetchall()
            if done < samples:
                self._score("measured", samples)
            found[dtype] = precision.measured(self.con, low, self._settled())
            if not found[dtype].records:
                raise StageError(
                    f"how far off the {dtype} scores of student {self.work.student} are cannot be measured: no record "
                    "could be scored in fp32",
                    "free memory for it, or name other devices in student.devices",
                )
        return found

    def _close(self, errors: precision.Errors) -> str:
        """SQL for the samples with a verdict that the error of low precision could change under any policy."""
        bounds = [
            {"dtype": dtype} | {m: getattr(error, m) for m in precision.MEASURES} for dtype, error in errors.items()
        ]
        self.con.register("errors", pa.Table.from_pylist(bounds))
        return close_sql(self._verdicts(), self._open(), precision.ratios(self.scores))

    def _verdicts(self, only: str = "") -> str:
        """SQL for the rule's rows with the scores settled so far; `only`: a table of samples to restrict it to."""
        some = f"SEMI JOIN {only} USING (sample_id)" if only else ""
        own = {scores.TABLE: self.scores, TABLE: self._settled()}
        relations = {name: f"(SELECT * FROM ({sql}) {some})" for name, sql in own.items()}
        relations["candidates"] = f"(SELECT * FROM {self.work.lake.source('candidates')} {some})"
        return rule_sql(self.work.lake, self.work.student, "asked_policies", relations)

    def _score(self, chosen: str, n: int) -> None:
        """Score the `n` samples in the table `chosen` in fp32, and store the scores once a minute."""
        lake, records = self.work.lake, self.rows.texts_of(chosen)
        try:
            for scored in scoring.score_in_fp32(
                self.work.settings, self.info, lake.home, records, n, self.work.progress
            ):
                self.rows.remember(scored.rows)
                self.settled += len(scored.samples)
                if time.monotonic() - self.flushed >= _FLUSH_S:
                    self._commit(complete=False)
        finally:  # after an error or Ctrl-C, keep the finished scores
            self._commit(complete=False)

    def _commit(self, complete: bool) -> None:
        lake, partition = self.work.lake, self.work.partition
        part = lake.sink_part(self.con, f"{self._settled()} ORDER BY sample_id, candidate", TABLE, partition)
        lake.commit(
            TABLE, [part], fingerprint=self.work.want, code_version=VERSION, partition=partition, complete=complete
        )
        self.flushed = time.monotonic()
