"""Verdicts that low precision could turn are settled: their records are scored in fp32 before they are decided.

Here belongs the table `settled_scores`, whose rows count in place of those in low precision (`final_scores.sql`), and
when it is filled. Which verdicts are close is in `close.py`; how far off a precision is, and how records are scored, is
scoring's (`scoring/precision.py`, `scoring/__init__.py`).
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
# The meaning of `final_scores.sql` as it comes with the program: where nothing is settled, it gives student_scores.
FINAL_SCORES = "e92f4edb40ee2456"
_FLUSH_S = 60.0


def policies(settings: Settings, found: Manifest, student: str) -> list[dict]:
    """The policies whose close verdicts must be settled: the active one and the arms of training; rows of `policies`.

    `found`: the manifest of the student's scores. None if all are in fp32. An older program settled scores in low
    precision for one policy itself.
    """
    if not found.stats.get("low_precision_records"):
        return []
    names = {settings.selection.policy, *settings.training.arms}
    rows = policy_rows(settings.selection, settings.project.seed, student)
    settled = found.inputs.get(scores.SETTLED_FOR)
    return [row for row in rows if row["policy"] in names and row["policy_fingerprint"] != settled]


def settle(work: Work, found: Manifest) -> Facts:
    """Score close records in fp32, and count the verdicts that turned. Nothing to do: forget what no longer counts.

    StageError if the scores were made with other settings: the same scores in fp32 cannot be made then.
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
    """One student's close verdicts: found, settled, written down."""

    def __init__(self, work: Work, asked: list[dict]) -> None:
        self.work = work
        self.info = checkpoints.get(work.lake, work.student)
        way = scoring.way(work.settings, self.info, scoring.EXACT)
        self.rows = Known(work.lake, work.student, way, TABLE, memory(work.lake))
        self.con = self.rows.con
        # Ranks are not settled, and among a few records they mean nothing.
        plain = {"active": True, "top_k_count": None, "top_k_share": None}
        schema = TABLES["policies"].arrow_schema
        self.con.register("asked_policies", pa.Table.from_pylist([row | plain for row in asked], schema=schema))
        self.scores = f"SELECT * FROM {work.lake.source(scores.TABLE, work.partition)}"
        self.flushed = time.monotonic()
        self.settled = 0

    def close(self) -> None:
        self.rows.close()

    def run(self, errors: precision.Errors) -> Facts:
        """Settle what is close; the numbers of it."""
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
        """SQL: the rows of `settled_scores` that count, as far as they are known."""
        known = self.rows.rows("done", "d.content_key IS NOT NULL")
        return f"SELECT * FROM ({known}) SEMI JOIN ({self._low()}) USING (sample_id, candidate, content_key)"

    def _low(self) -> str:
        return f"SELECT * FROM ({self.scores}) WHERE {precision.LOW}"

    def _open(self) -> str:
        """SQL: the scores in low precision that are not settled."""
        return f"SELECT * FROM ({self._low()}) ANTI JOIN done USING (content_key)"

    def _measured_now(self, errors: precision.Errors) -> dict[str, Error]:
        """The errors of precisions in which an older program scored, which measured only what one policy compared.

        StageError if none can be measured: no verdict would then be known to be right.
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
        """SQL: samples scored in low precision with a verdict that its error could turn, under one of the policies."""
        bounds = [
            {"dtype": dtype} | {m: getattr(error, m) for m in precision.MEASURES} for dtype, error in errors.items()
        ]
        self.con.register("errors", pa.Table.from_pylist(bounds))
        return close_sql(self._verdicts(), self._open(), precision.ratios(self.scores))

    def _verdicts(self, only: str = "") -> str:
        """SQL: the rule's rows with what is settled so far; `only`: a table of samples."""
        some = f"SEMI JOIN {only} USING (sample_id)" if only else ""
        own = {scores.TABLE: self.scores, TABLE: self._settled()}
        relations = {name: f"(SELECT * FROM ({sql}) {some})" for name, sql in own.items()}
        relations["candidates"] = f"(SELECT * FROM {self.work.lake.source('candidates')} {some})"
        return rule_sql(self.work.lake, self.work.student, "asked_policies", relations)

    def _score(self, chosen: str, n: int) -> None:
        """Have the `n` samples in the table `chosen` scored in fp32, and write down what is done once a minute."""
        lake, records = self.work.lake, self.rows.texts_of(chosen)
        try:
            for scored in scoring.score_in_fp32(
                self.work.settings, self.info, lake.home, records, n, self.work.progress
            ):
                self.rows.remember(scored.rows)
                self.settled += len(scored.samples)
                if time.monotonic() - self.flushed >= _FLUSH_S:
                    self._commit(complete=False)
        finally:  # an error or Ctrl-C keeps what is done
            self._commit(complete=False)

    def _commit(self, complete: bool) -> None:
        lake, partition = self.work.lake, self.work.partition
        part = lake.sink_part(self.con, f"{self._settled()} ORDER BY sample_id, candidate", TABLE, partition)
        lake.commit(
            TABLE, [part], fingerprint=self.work.want, code_version=VERSION, partition=partition, complete=complete
        )
        self.flushed = time.monotonic()
