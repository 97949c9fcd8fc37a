"""The stage of the asset `selected_set`: runs `decisions.sql` for one student and stores the verdicts.

It writes four tables: `policies` (all policies with their switches), `decisions` (verdicts of the active policy),
`policy_decisions` (verdicts of all policies) and `selected_set` (the texts of the kept candidates). Rows never become
Python objects. Verdicts that low precision could change are settled first (`settle.py`).
"""

from typing import Any

import duckdb
import pyarrow as pa

from srt_assets.core.errors import StageError
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.manifest import Manifest
from srt_assets.core.outcome import Description, Made
from srt_assets.core.scoring.stage import SETTLED_FOR
from srt_assets.core.selection import settle
from srt_assets.core.selection.policies import policy_rows
from srt_assets.core.selection.rule import memory, rule_sql
from srt_assets.core.sql import models
from srt_assets.core.stage import Stage, Work
from srt_assets.core.tables import TABLES, rows_as_dicts, sql_literal
from srt_assets.settings import Settings

TABLE = "selected_set"


class SelectedSet(Stage):
    """The student's choice: the verdicts of `dbt_like_sql/models/marts/decisions.sql`, and the texts of the kept."""

    asset = "selected_set"
    tables = (TABLE, "policy_decisions", "decisions", "policies")
    feeds = (settle.TABLE,)
    version = "1"
    needs = ("student_scores", "reflected_responses")
    group = "selection"
    kinds = frozenset({"duckdb", "parquet"})
    per_student = True
    # Settling close verdicts scores records on a device.
    pool = "device"

    def wanted(self, settings: Settings, lake: Lake, student: str = "") -> Fingerprint:
        """The fingerprint of the scores, the candidates, the policies and the rule's SQL.

        StageError if the student has no complete scores of the current candidates, UserError with file and line if the
        rule's SQL does not compile.
        """
        scores = lake.manifest("student_scores", f"student={student}")
        if scores is None or not scores.complete:
            what = "unfinished" if scores else "missing"
            raise StageError(
                f"the scores of student {student} are {what}", f"make them: srt run student_scores --student {student}"
            )
        candidates = sorted(m.content_hash for m in lake.manifests("candidates"))
        if sorted(scores.inputs.get("candidates", ())) != candidates:
            # Without this check a verdict would apply to texts that were never scored.
            raise StageError(
                f"the candidates have changed since student {student} scored them",
                f"score them: srt run selected_set --student {student}",
            )
        models.check_rule()
        project = models.load()
        # The SQL that prefers settled scores is part of the fingerprint only if something is settled (`_settled`).
        rule = models.code_version(project.models[models.RULE], project, {models.SCORES: "student_scores"})
        facts = {
            "stage": TABLE,
            "version": self.version,
            "student_scores": scores.content_hash,
            "candidates": candidates,
            "policies": policy_rows(settings.selection, settings.project.seed, student),
            "rule": rule,
        }
        return Fingerprint.of(**facts, **self._settled(settings, lake, student, scores, Fingerprint.of(**facts)))

    def _settled(
        self, settings: Settings, lake: Lake, student: str, scores: Manifest, plain: Fingerprint
    ) -> dict[str, Any]:
        """The facts of the fingerprint about settling; {} if nothing has to be settled."""
        project = models.load()
        final = models.code_version(project.models[models.SCORES], project) if models.SCORES in project.models else ""
        asked = settle.policies(settings, scores, student)
        before = lake.manifest(TABLE, f"student={student}")
        if SETTLED_FOR in scores.inputs and before and before.fingerprint == plain.digest:
            asked = []  # an older program settled and decided, and its inputs have not changed
        if not asked and final == settle.FINAL_SCORES:
            return {}
        return {"settled_for": sorted(policy["policy_fingerprint"] for policy in asked), "final_scores": final}

    def right(self, lake: Lake, student: str, want: Fingerprint) -> Manifest | None:
        """As in `Stage`; also None if the rows that settling wrote are missing."""
        settled = bool(want.facts.get("settled_for"))
        if settled and not lake.whole(settle.TABLE, self.partition(student)):
            return None
        return super().right(lake, student, want)

    def make(self, work: Work) -> Made:
        """Decide for a student and store the verdicts and the kept texts."""
        lake, student, partition = work.lake, work.student, work.partition
        scores = lake.manifest("student_scores", partition)
        assert scores, "`wanted` has seen it"
        settled = settle.settle(work, scores)
        with lake.connect(memory(lake)) as con:
            parts = {"policies": lake.write_part("policies", _rows(work.settings, student), partition)}
            con.execute("CREATE TEMP TABLE asked AS SELECT * FROM " + _part(lake, "policies", partition, parts))
            # Only the selected set needs an order, and keeping one costs memory.
            con.execute("SET preserve_insertion_order = false")
            every = rule_sql(lake, student, "asked", active_only=False)
            parts["policy_decisions"] = lake.sink_part(con, every, "policy_decisions", partition)
            work.progress(1, 3, "tables")
            # The rule runs once for all policies; the active policy's verdicts are taken from its result.
            verdicts = _part(lake, "policy_decisions", partition, parts)
            active = f"SELECT * FROM {verdicts} WHERE policy IN (SELECT policy FROM asked WHERE active)"
            parts["decisions"] = lake.sink_part(con, active, "decisions", partition)
            work.progress(2, 3, "tables")
            con.execute("SET preserve_insertion_order = true")
            verdicts = _part(lake, "decisions", partition, parts)
            parts[TABLE] = lake.sink_part(con, selected_sql(lake, verdicts), TABLE, partition)
            stats = {**_counts(con, verdicts), **settled}
        if self.wanted(work.settings, lake, student) != work.want:
            raise StageError(
                f"scores or candidates of student {student} changed while they were being decided",
                f"decide again: srt run selected_set --student {student}",
            )
        return Made({table: [part] for table, part in parts.items()}, stats)

    def describe(self, lake: Lake, student: str = "") -> Description:
        """Outcomes and branches, IFD and r-IFD of what was kept, five rows of the selected set, the IFD's histogram."""
        decided = lake.source("decisions", f"student={student}")
        with lake.connect() as con:
            numbers = _counts(con, decided)
            branches = con.execute(f"SELECT branch, count(*) FROM {decided} WHERE kept GROUP BY 1 ORDER BY 1")
            numbers |= {f"kept_{branch}": n for branch, n in branches.fetchall()}
            [ratios] = rows_as_dicts(
                con.execute(
                    "SELECT avg(exp(log_ifd)) AS ifd_mean, median(exp(log_ifd)) AS ifd_median, "
                    "avg(exp(log_r_ifd)) AS r_ifd_mean, median(exp(log_r_ifd)) AS r_ifd_median "
                    f"FROM {decided} WHERE kept"
                )
            )
            numbers |= {name: value for name, value in ratios.items() if value is not None}
            if numbers["samples"]:
                numbers["kept_share"] = float(numbers["kept"]) / float(numbers["samples"])
            sample = rows_as_dicts(
                con.execute(
                    "SELECT sample_id, candidate, exp(log_ifd) AS ifd, exp(log_r_ifd) AS r_ifd, "
                    "left(instruction, 200) AS instruction, left(input, 200) AS input, left(response, 200) AS response "
                    f"FROM {lake.source(TABLE, f'student={student}')} ORDER BY position LIMIT 5"
                )
            )
            values = con.execute(
                f"SELECT exp(log_ifd) FROM {decided} WHERE kept AND log_ifd IS NOT NULL USING SAMPLE 20000 ROWS"
            ).fetchall()
        return Description(numbers, sample, ("IFD of the kept", [v for (v,) in values]))


STAGE = SelectedSet()


def selected_sql(lake: Lake, verdicts: str) -> str:
    """Rows of `selected_set` for a relation of verdicts (columns of `decisions`, one policy), in order of sample ids.

    Sample ids are hashes, so their order is as good as a shuffle and the same on every machine. Texts are read for the
    kept candidates only.
    """
    return f"""
    SELECT student, kept.sample_id, kept.dataset, candidate, instruction, input, response, log_ifd, log_r_ifd,
        content_key, position
    FROM (SELECT *, row_number() OVER (ORDER BY sample_id) - 1 AS position FROM {verdicts} WHERE kept) AS kept
    JOIN {lake.source("candidates")} AS texts ON texts.sample_id = kept.sample_id AND texts.candidate = kept.chosen
    ORDER BY position
    """


def arm_sql(lake: Lake, student: str, policy: str) -> str:
    """SQL for the training rows of any policy, like those of `selected_set`, from the stored verdicts."""
    verdicts = lake.source("policy_decisions", f"student={student}")
    return selected_sql(lake, f"(SELECT * FROM {verdicts} WHERE policy = {sql_literal(policy)})")


def _rows(settings: Settings, student: str) -> pa.Table:
    rows = policy_rows(settings.selection, settings.project.seed, student)
    return pa.Table.from_pylist(rows, schema=TABLES["policies"].arrow_schema)


def _part(lake: Lake, table: str, partition: str | None, parts: dict[str, str]) -> str:
    return f"({TABLES[table].select_sql([lake.directory(table, partition) / parts[table]])})"


def _counts(con: duckdb.DuckDBPyConnection, verdicts: str) -> dict[str, int | float | str]:
    rows = con.execute(f"SELECT outcome, reason, count(*) FROM {verdicts} GROUP BY ALL ORDER BY ALL").fetchall()
    stats: dict[str, int | float | str] = {"samples": sum(n for *_, n in rows)}
    for outcome in ("kept", "not_chosen", "rejected"):
        stats[outcome] = sum(n for o, _, n in rows if o == outcome)
    return stats | {f"because_{reason}": n for outcome, reason, n in rows if outcome != "kept"}
