"""The rows of a training: those of a policy, split into training and held-out rows.

All this is done in SQL, before any text is tokenized: rows go from the lake into one Parquet file and are never all in
memory. How that file becomes samples is in `data.py`.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from srt_assets.core import scratch
from srt_assets.core.duck_paths import exactly
from srt_assets.core.errors import UserError
from srt_assets.core.hashing import content_key
from srt_assets.core.lake import Lake
from srt_assets.core.locks import naming
from srt_assets.core.selection import decide
from srt_assets.core.tables import sql_literal

TRAIN = "train"
HELD_OUT = "held_out"
# The original versions of the held-out records: the only measure that does not depend on an arm's texts.
HELD_OUT_ORIGINAL = "held_out_original"
# One row to train on and one to hold out.
FEWEST = 2
# Rows in memory at a time, here and in `data.py`.
AT_ONCE = 2048
_TEXTS = ("instruction", "input", "response")
_NAMES = ("sample_id", "dataset", "candidate", *_TEXTS)
_COLUMNS = ", ".join(_NAMES)
_SCHEMA = pa.schema([(name, pa.string()) for name in (*_NAMES, "split", "content_key")])


@dataclass(frozen=True)
class Rows:
    """Rows of one arm in a file: training rows, then held-out rows, then their originals, each sorted by sample id.

    `sizes`: rows by split. `counts`: training rows by dataset and by candidate. `n_repeated`: rows that were left out
    because they have the texts of a held-out row. `data_hash`: hash of all rows in the file.
    """

    path: Path
    sizes: dict[str, int]
    counts: dict[str, dict[str, int]]
    n_repeated: int
    data_hash: str
    # The file is deleted with this object, unless it was moved.
    folder: TemporaryDirectory = field(repr=False, compare=False)

    def move(self, path: Path) -> None:
        """Move the file to the path at which a training reads it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.move(self.path, path)
        except BaseException:
            path.unlink(missing_ok=True)  # an incomplete copy, if the disk is full
            raise


def held_out_sql(source: str, share: float, seed: int) -> str:
    """SQL for the `sample_id` of the held-out rows: those whose hash is below `share`, and at least one if `share` > 0.

    It depends on the id and the seed alone, not on the rest of the selection: a record held out in one round, or for
    one arm, is also held out in the next.
    """
    place = f"('0x' || left(sha256('{seed}:' || sample_id), 16))::UBIGINT::DOUBLE / {2.0**64!r}"
    return (
        f"SELECT sample_id FROM (SELECT sample_id, {place} AS place FROM {source}) "
        f"QUALIFY {share!r} > 0 AND (place < {share!r} OR row_number() OVER (ORDER BY place, sample_id) = 1)"
    )


def active(lake: Lake, student: str, share: float, seed: int) -> Rows:
    """The student's selected set, split. UserError if it is missing or too small to train on."""
    with lake.connect() as con:
        chosen = lake.source("selected_set", f"student={student}")
        n = _count(con, chosen)
        if n < FEWEST:
            raise UserError(
                f"the selected set of {student!r} has {n} row(s); training needs at least {FEWEST}",
                "add data, or choose another selection.policy or a larger selection.top_k; "
                '`srt sql "SELECT reason, count(*) FROM decisions GROUP BY 1"` shows why rows were left out',
            )
        con.execute(f"CREATE TEMP TABLE held AS {held_out_sql(chosen, share, seed)}")
        measured = (
            f"SELECT {_COLUMNS}, '{HELD_OUT}' AS split FROM {chosen} SEMI JOIN held USING (sample_id) "
            f"UNION ALL SELECT {_COLUMNS}, '{HELD_OUT_ORIGINAL}' FROM candidates SEMI JOIN held USING (sample_id) "
            "WHERE candidate = 'original' AND status = 'ok'"
        )
        return _written(con, lake, measured, chosen)


def of_policy(lake: Lake, student: str, policy: str, active: Rows) -> Rows:
    """The rows that another policy keeps, without the active policy's held-out records, and the same held-out rows.

    UserError if the policy keeps no row.
    """
    with lake.connect() as con:
        measured = f"SELECT {_COLUMNS}, split FROM {_file(active.path)} WHERE split <> '{TRAIN}'"
        found = _written(con, lake, measured, f"({decide.arm_sql(lake, student, policy)})")
    if not found.sizes[TRAIN]:
        raise UserError(
            f"the arm {policy!r} keeps no row of {student!r} to train on", f"take {policy!r} out of training.arms"
        )
    return found


def _written(con: duckdb.DuckDBPyConnection, lake: Lake, measured: str, chosen: str) -> Rows:
    """Write the chosen rows that are not held out, and the `measured` rows. A training row with the same texts as a
    held-out row is left out, because the split must not leak through copies.
    """
    con.execute(f"CREATE TEMP TABLE held_rows AS SELECT * FROM ({measured}) WHERE split = '{HELD_OUT}'")
    learned = f"(SELECT {_COLUMNS} FROM {chosen} AS c ANTI JOIN held_rows USING (sample_id))"
    same = " AND ".join(f"h.{text} IS NOT DISTINCT FROM c.{text}" for text in _TEXTS)
    rows = con.sql(
        f"FROM (SELECT *, '{TRAIN}' AS split FROM {learned} AS c ANTI JOIN held_rows AS h ON {same} "
        f"UNION ALL {measured}) "
        f"ORDER BY list_position(['{TRAIN}', '{HELD_OUT}', '{HELD_OUT_ORIGINAL}'], split), sample_id"
    )
    folder = scratch.folder(lake.home)
    path = Path(folder.name) / "rows.parquet"
    with naming(path), pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for batch in rows.to_arrow_reader(AT_ONCE):
            texts = zip(*(batch.column(text).to_pylist() for text in _TEXTS), strict=True)
            keys = pa.array([content_key(*row) for row in texts], pa.string())
            columns = [*(batch.column(name) for name in _SCHEMA.names[:-1]), keys]
            writer.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA), AT_ONCE)
    source = _file(path)
    sizes = {s: _count(con, f"{source} WHERE split = '{s}'") for s in (TRAIN, HELD_OUT, HELD_OUT_ORIGINAL)}
    counts = {name: _counted(con, source, name) for name in ("dataset", "candidate")}
    return Rows(path, sizes, counts, _count(con, learned) - sizes[TRAIN], _data_hash(con, source), folder)


def _file(path: Path) -> str:
    return f"read_parquet({sql_literal(exactly(path))}, hive_partitioning=false)"


def _count(con: duckdb.DuckDBPyConnection, source: str) -> int:
    found = con.execute(f"SELECT count(*) FROM {source}").fetchone()
    assert found is not None
    return found[0]


def _counted(con: duckdb.DuckDBPyConnection, source: str, column: str) -> dict[str, int]:
    found = con.execute(
        f"SELECT {column}, count(*) FROM {source} WHERE split = '{TRAIN}' GROUP BY 1 ORDER BY 1"
    ).fetchall()
    return dict(found)


def _data_hash(con: duckdb.DuckDBPyConnection, source: str) -> str:
    """Hash of all rows, independent of their order: `digest(rows=sorted([id, split, key] of each row))`."""
    rows = con.sql(f"SELECT sample_id, split, content_key FROM {source} ORDER BY ALL")
    found = hashlib.sha256(b'{"rows":[')
    for i, piece in enumerate(_pieces(rows)):
        found.update(("," * (i > 0) + piece).encode())
    found.update(b"]}")
    return found.hexdigest()


def _pieces(rows: duckdb.DuckDBPyRelation) -> Iterator[str]:
    for batch in rows.to_arrow_reader(AT_ONCE):
        texts = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        yield json.dumps(list(texts), ensure_ascii=False, separators=(",", ":"))[1:-1]
