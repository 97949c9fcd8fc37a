"""Known and missing scores of one student, in SQL, and writing them. Computing scores is in `__init__.py`.

A score belongs to texts (content key), student (fingerprint) and way of scoring, not to a sample: candidates with the
same texts have the same score. Texts leave DuckDB only for candidates that must be scored.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import pyarrow as pa

from srt_assets.core.lake import Lake
from srt_assets.core.scoring.encoding import Texts
from srt_assets.core.tables import PASSES, TABLES, rows_as_dicts, sql_literal

TABLE = "student_scores"
NOT_OK = "candidate_not_ok"
OUT_OF_MEMORY = "out_of_memory"
_BATCH = 2048
_OF_PASSES = [f"{column}_{name}" for name in PASSES for column in ("sum_nll", "n_tokens", "truncated", "status")]
_FACTS = ["template", "protocol", "first_token", "max_length", "dtype", "scoring_version", "student_fingerprint"]
_NUMBERS = [*_OF_PASSES, *_FACTS]


@dataclass(frozen=True)
class Way:
    """How a score was made. Only scores made the same way are reused. `dtypes`: accepted precisions."""

    student_fingerprint: str
    template: str
    protocol: str
    max_length: int
    scoring_version: str
    dtypes: tuple[str, ...]

    def condition(self) -> str:
        same = [
            f"{fact.name} = {sql_literal(str(getattr(self, fact.name)))}"
            for fact in fields(self)
            if fact.name != "dtypes"
        ]
        # Rows without a score for lack of memory are tried again, because the machine may have more memory now.
        fit = [f"status_{name} <> '{OUT_OF_MEMORY}'" for name in PASSES]
        return " AND ".join([*same, f"dtype IN ({', '.join(map(sql_literal, self.dtypes))})", *fit])


class Known:
    """The scores of one student that were made in this way, from one table with the columns of `student_scores`.

    Close it. `partition` is `student=<slug>`. Tables in `con`: `wanted` (all candidates), `done` (scores by content
    key).
    """

    def __init__(self, lake: Lake, student: str, way: Way, table: str, memory: str | None = None) -> None:
        self.lake = lake
        self.student = student
        self.partition = f"student={student}"
        self.way = way
        self.table = table
        self.con = lake.connect(memory)
        # Scores without texts, one row per content key.
        self.con.execute(
            f"CREATE TABLE done AS SELECT DISTINCT ON (content_key) content_key, {', '.join(_NUMBERS)} "
            f"FROM {lake.source(table, self.partition)} WHERE {way.condition()}"
        )
        self.con.execute(
            "CREATE TABLE wanted AS SELECT sample_id, candidate, content_key, status = 'ok' AS ok FROM candidates"
        )

    def close(self) -> None:
        self.con.close()

    def texts_of(self, chosen: str) -> Iterator[tuple[str, str, Texts]]:
        """(sample_id, content_key, texts) of all candidates that can be scored, of the samples in the table `chosen`.

        Candidates with known scores are included.
        """
        return self._texts(f"SELECT sample_id, candidate FROM wanted SEMI JOIN {chosen} USING (sample_id) WHERE ok")

    def choose(self, name: str, samples: str) -> int:
        """Store samples (SQL with the column sample_id) as a table of this name; returns their number."""
        self.con.execute(f"CREATE OR REPLACE TABLE {name} AS {samples}")
        [(n,)] = self.con.execute(f"SELECT count(*) FROM {name}").fetchall()
        return n

    def remember(self, rows: list[dict]) -> None:
        """Add scores (columns as in the table, by content key) to the known ones; a newer one replaces an older."""
        schema = TABLES[self.table].arrow_schema
        columns = ["content_key", *_NUMBERS]
        facts = {"scoring_version": self.way.scoring_version, "student_fingerprint": self.way.student_fingerprint}
        typed = pa.schema([schema.field(c) for c in columns])
        self.con.register("fresh", pa.Table.from_pylist([row | facts for row in rows], schema=typed))
        self.con.execute("DELETE FROM done WHERE content_key IN (SELECT content_key FROM fresh)")
        self.con.execute("INSERT INTO done SELECT DISTINCT ON (content_key) * FROM fresh")
        self.con.unregister("fresh")

    def rows(self, scores: str = "done", condition: str = "true") -> str:
        """SQL for the table's rows of all candidates, joined with `scores` (a table like `done`) by content key."""
        unscored = ", ".join(
            f"CASE WHEN ok THEN d.{c} ELSE {sql_literal(NOT_OK)} END AS {c}" if c.startswith("status_") else f"d.{c}"
            for c in _NUMBERS
        )
        return (
            f"SELECT {sql_literal(self.student)} AS student, w.sample_id, w.candidate, w.content_key, {unscored} "
            f"FROM wanted w LEFT JOIN {scores} d ON w.ok AND d.content_key = w.content_key WHERE {condition}"
        )

    def write(self, condition: str = "true", order: str = "ORDER BY sample_id, candidate") -> str:
        """Write these rows as a new part and return its name."""
        return self.lake.sink_part(self.con, f"{self.rows('done', condition)} {order}", self.table, self.partition)

    def _texts(self, chosen: str) -> Iterator[tuple[str, str, Texts]]:
        with self.con.cursor() as cursor:
            reader = cursor.execute(
                "SELECT c.sample_id, c.content_key, c.instruction, c.input, c.response FROM candidates c "
                f"SEMI JOIN ({chosen}) USING (sample_id, candidate) ORDER BY c.sample_id, c.content_key"
            )
            while rows := reader.fetchmany(_BATCH):
                for sample_id, content_key, *texts in rows:
                    yield sample_id, content_key, Texts(*texts)


class Store(Known):
    """The student's rows in `student_scores` for one run, with the table `todo` of candidates without a score."""

    def __init__(self, lake: Lake, student: str, way: Way) -> None:
        super().__init__(lake, student, way, TABLE)
        self.con.execute(
            "CREATE TABLE todo AS SELECT sample_id, content_key, min(candidate) AS candidate FROM wanted w "
            "WHERE ok AND NOT EXISTS (FROM done d WHERE d.content_key = w.content_key) GROUP BY ALL"
        )

    def counts(self) -> dict[str, int]:
        """`candidates`, of which `candidates_ok`, `reused`; `todo` (to score) and their `samples_todo`."""
        (counts,) = rows_as_dicts(
            self.con.execute(
                "SELECT count(*) AS candidates, count(*) FILTER (ok) AS candidates_ok, "
                "(SELECT count(*) FROM todo) AS todo, (SELECT count(DISTINCT sample_id) FROM todo) AS samples_todo, "
                "(SELECT count(*) FROM wanted w SEMI JOIN done d USING (content_key) WHERE ok) AS reused FROM wanted"
            )
        )
        return counts

    def missing(self) -> Iterator[tuple[str, str, Texts]]:
        """(sample_id, content_key, texts) of the candidates to score; candidates of a sample are consecutive."""
        return self._texts("SELECT sample_id, candidate FROM todo")

    def samples(self, condition: str, at_most: int | None = None) -> str:
        """SQL for the samples with a score that meets this condition; at most `at_most`, chosen by a hash of the id."""
        limit = "" if at_most is None else f"ORDER BY hash(sample_id) LIMIT {at_most}"
        return (
            "SELECT DISTINCT sample_id FROM wanted w JOIN done d ON w.ok AND d.content_key = w.content_key "
            f"WHERE {condition} {limit}"
        )

    def count(self, condition: str) -> int:
        """The number of samples with a score that meets this condition."""
        [(n,)] = self.con.execute(
            "SELECT count(DISTINCT sample_id) FROM wanted w JOIN done d ON w.ok AND d.content_key = w.content_key "
            f"WHERE {condition}"
        ).fetchall()
        return n

    def write_reused(self) -> str:
        """Write a part with every sample that needs no scoring, and return its name."""
        return self.write("sample_id NOT IN (SELECT sample_id FROM todo)", order="")

    def write_scored(self, samples: list[str], rows: list[dict]) -> str:
        """Write a part with all four rows of these samples, new and known ones, and return its name."""
        self.remember(rows)
        self.con.execute("CREATE OR REPLACE TABLE asked AS SELECT unnest(?::VARCHAR[]) AS sample_id", [samples])
        return self.write("sample_id IN (FROM asked)", order="")

    def merge(self, parts: list[str]) -> str:
        """Merge these parts into one, because each commit and each query opens every part. Returns its name."""
        paths = [self.lake.directory(TABLE, self.partition) / name for name in parts]
        return self.lake.sink_part(self.con, TABLES[TABLE].select_sql(paths), TABLE, self.partition)
