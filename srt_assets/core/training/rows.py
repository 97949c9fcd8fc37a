"""Which rows a training sees: the rows of a policy, and the split between training and held-out rows."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from srt_assets.core.errors import UserError
from srt_assets.core.hashing import content_key, digest
from srt_assets.core.lake import Lake
from srt_assets.core.selection import decide
from srt_assets.core.tables import rows_as_dicts

TRAIN = "train"
HELD_OUT = "held_out"
# The same held-out records as the dataset gave them: the one yardstick that no arm's texts have shaped.
HELD_OUT_ORIGINAL = "held_out_original"
# One to learn from and one to measure with.
FEWEST = 2
_TEXTS = ("instruction", "input", "response")
_COLUMNS = ("sample_id", "dataset", "candidate", *_TEXTS)


@dataclass(frozen=True)
class Rows:
    """Rows of one arm: dicts with sample_id, dataset, candidate, instruction, input, response, split."""

    rows: list[dict]
    n_repeated: int = 0

    def of(self, split: str) -> list[dict]:
        return [r for r in self.rows if r["split"] == split]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Training rows by dataset and by candidate: where the texts come from."""
        return {
            name: dict(sorted(Counter(r[name] for r in self.of(TRAIN)).items())) for name in ("dataset", "candidate")
        }

    @property
    def data_hash(self) -> str:
        """Hash of what is trained and measured on, in no order."""
        return digest(
            rows=sorted([r["sample_id"], r["split"], content_key(*(r[t] for t in _TEXTS))] for r in self.rows)
        )

    def write(self, path: Path) -> None:
        columns = (*_COLUMNS, "split")
        schema = pa.schema([(name, pa.string()) for name in columns])
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist([{c: r[c] for c in columns} for r in self.rows], schema=schema)
        try:
            pq.write_table(table, path)
        except BaseException:
            path.unlink(missing_ok=True)  # half of it, on a disk that is full
            raise


def held_out_ids(ids: Iterable[str], share: float, seed: int) -> set[str]:
    """The ids kept out of training: those whose hash falls under `share`, and at least one if `share` > 0.

    Membership depends on the id alone, not on the rest of the selection: a record held out in one round, or for one
    arm, is held out in the next.
    """
    if share <= 0:
        return set()
    hashes = ((hashlib.sha256(f"{seed}:{i}".encode()).digest(), i) for i in ids)
    ranked = sorted((int.from_bytes(hash[:8]) / 2**64, i) for hash, i in hashes)
    held = {i for place, i in ranked if place < share}
    return held or {i for _, i in ranked[:1]}


def active(lake: Lake, student: str, share: float, seed: int) -> Rows:
    """The student's selected set, split. UserError if it is missing or too small to train on."""
    with lake.connect() as con:
        chosen = _read(con, lake.source("selected_set", f"student={student}"))
        if len(chosen) < FEWEST:
            raise UserError(
                f"the selected set of {student!r} has {len(chosen)} row(s); training needs at least {FEWEST}",
                "add data, or choose another selection.policy or a larger selection.top_k; "
                '`srt sql "SELECT reason, count(*) FROM decisions GROUP BY 1"` shows why rows were left out',
            )
        held = held_out_ids([r["sample_id"] for r in chosen], share, seed)
        con.execute("CREATE TABLE held AS SELECT unnest(?::VARCHAR[]) AS sample_id", [sorted(held)])
        is_original = "candidate = 'original' AND status = 'ok'"
        originals = _read(con, f"(FROM candidates SEMI JOIN held USING (sample_id) WHERE {is_original})")
    measured = [{**r, "split": HELD_OUT} for r in chosen if r["sample_id"] in held]
    return _beside([*measured, *({**r, "split": HELD_OUT_ORIGINAL} for r in originals)], chosen)


def of_policy(lake: Lake, student: str, policy: str, active: Rows) -> Rows:
    """The rows another policy would keep, without the records held out for the active one; measured on the same rows.

    UserError if the policy keeps too few.
    """
    with lake.connect() as con:
        kept = _read(con, f"({decide.arm_sql(lake, student, policy)})")
    found = _beside([r for r in active.rows if r["split"] != TRAIN], kept)
    if not found.of(TRAIN):
        raise UserError(
            f"the arm {policy!r} keeps no row of {student!r} to train on", f"take {policy!r} out of training.arms"
        )
    return found


def _read(con: duckdb.DuckDBPyConnection, source: str) -> list[dict]:
    return rows_as_dicts(con.execute(f"SELECT {', '.join(_COLUMNS)} FROM {source} ORDER BY sample_id"))


def _beside(measured: list[dict], chosen: list[dict]) -> Rows:
    """What is chosen and not held out, to train on. A row with the very texts of a held-out row is left out: the split
    must not leak through copies.
    """
    held_out = [r for r in measured if r["split"] == HELD_OUT]
    held, seen = {r["sample_id"] for r in held_out}, {tuple(r[t] for t in _TEXTS) for r in held_out}
    learned = [{**r, "split": TRAIN} for r in chosen if r["sample_id"] not in held]
    kept = [r for r in learned if tuple(r[t] for t in _TEXTS) not in seen]
    return Rows([*kept, *measured], len(learned) - len(kept))
