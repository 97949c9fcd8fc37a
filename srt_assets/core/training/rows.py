"""Which rows a training sees: the rows of a policy, and the split between training and held-out rows."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from srt_assets.core.errors import UserError
from srt_assets.core.hashing import content_key, digest
from srt_assets.core.lake import Lake
from srt_assets.core.selection import decide

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
        pq.write_table(pa.Table.from_pylist([{c: r[c] for c in columns} for r in self.rows], schema=schema), path)


def held_out_ids(ids: Iterable[str], share: float, seed: int) -> set[str]:
    """The ids kept out of training: those whose hash falls under `share`, and at least one if `share` > 0.

    Membership depends on the id alone, not on the rest of the selection: a record held out in one round, or for one
    arm, is held out in the next.
    """
    if share <= 0:
        return set()
    ranked = sorted((_place(i, seed), i) for i in ids)
    held = {i for place, i in ranked if place < share}
    return held or {i for _, i in ranked[:1]}


def _place(sample_id: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}:{sample_id}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def active(lake: Lake, student: str, share: float, seed: int) -> Rows:
    """The student's selected set, split. UserError if it is missing or too small to train on."""
    with lake.connect() as con:
        found = con.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM {lake.source('selected_set', f'student={student}')} ORDER BY sample_id"
        ).fetchall()
        chosen = [_row(r) for r in found]
        if len(chosen) < FEWEST:
            raise UserError(
                f"the selected set of {student!r} has {len(chosen)} row(s); training needs at least {FEWEST}",
                "add data, or choose another selection.policy or a larger selection.top_k; "
                '`srt sql "SELECT reason, count(*) FROM decisions GROUP BY 1"` shows why rows were left out',
            )
        held = held_out_ids([r["sample_id"] for r in chosen], share, seed)
        return _split(chosen, held, _originals(con, held))


def _originals(con, held: set[str]) -> list[dict]:
    found = con.execute(
        f"SELECT {', '.join(_COLUMNS)} FROM candidates "
        "WHERE candidate = 'original' AND status = 'ok' AND list_contains(?, sample_id) ORDER BY sample_id",
        [sorted(held)],
    ).fetchall()
    return [_row(r) for r in found]


def _row(values: tuple) -> dict:
    return dict(zip(_COLUMNS, values, strict=True))


def _split(chosen: list[dict], held: set[str], originals: list[dict]) -> Rows:
    """A training row with the very texts of a held-out row is left out: the split must not leak through copies."""
    measured = [r for r in chosen if r["sample_id"] in held]
    seen = {tuple(r[t] for t in _TEXTS) for r in measured}
    learned = [r for r in chosen if r["sample_id"] not in held]
    kept = [r for r in learned if tuple(r[t] for t in _TEXTS) not in seen]
    rows = [
        *({**r, "split": TRAIN} for r in kept),
        *({**r, "split": HELD_OUT} for r in measured),
        *({**r, "split": HELD_OUT_ORIGINAL} for r in originals),
    ]
    return Rows(rows, len(learned) - len(kept))


def of_policy(lake: Lake, student: str, policy: str, active: Rows) -> Rows:
    """The rows another policy would keep, without the records held out for the active one; measured on the same rows.

    UserError if the policy keeps too few.
    """
    with lake.connect() as con:
        found = con.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM ({decide.arm_sql(lake, student, policy)}) ORDER BY sample_id"
        ).fetchall()
    held = {r["sample_id"] for r in active.of(HELD_OUT)}
    measured = [r for r in active.rows if r["split"] != TRAIN]
    seen = {tuple(r[t] for t in _TEXTS) for r in active.of(HELD_OUT)}
    learned = [r for r in map(_row, found) if r["sample_id"] not in held]
    kept = [r for r in learned if tuple(r[t] for t in _TEXTS) not in seen]
    if not kept:
        raise UserError(
            f"the arm {policy!r} keeps no row of {student!r} to train on", f"take {policy!r} out of training.arms"
        )
    return Rows([*({**r, "split": TRAIN} for r in kept), *measured], len(learned) - len(kept))
