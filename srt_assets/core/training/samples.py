"""Writes samples (token ids) to Arrow files, and reads them from there by number. No torch.

The files are memory-mapped, and every process of a training maps the same files, so that memory does not grow with the
number or the length of records. The content of a sample is decided in `data.py`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srt_assets.core.locks import naming

# A row with a reason is no sample; it is only counted.
_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("split", pa.string()),
        ("reason", pa.string()),
        ("start", pa.int32()),
        ("ids", pa.large_list(pa.int32())),
    ]
)


@dataclass(frozen=True)
class Example:
    """A sample as token ids (int32 [length]); the loss counts ids from `start` (≥ 1) on: the response and EOS."""

    sample_id: str
    ids: np.ndarray
    start: int

    @property
    def n_targets(self) -> int:
        return len(self.ids) - self.start


@dataclass(frozen=True)
class Encoded:
    """A row after encoding: its split, and the sample or the reason why there is none."""

    sample_id: str
    split: str
    ids: np.ndarray
    start: int = 0
    reason: str = ""


def write(path: Path, pieces: Iterable[Sequence[Encoded]]) -> None:
    """Write a file of samples. It gets its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process that has mapped an older file of that name keeps reading the older one.
    aside = path.with_suffix(".writing")
    with naming(path), pa.OSFile(str(aside), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        for rows in pieces:
            writer.write_batch(_batch(rows))
    aside.replace(path)


def _batch(rows: Sequence[Encoded]) -> pa.RecordBatch:
    offsets = np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int64)
    ids = np.concatenate([row.ids for row in rows]) if rows else np.zeros(0, np.int32)
    columns = [
        pa.array([row.sample_id for row in rows], pa.string()),
        pa.array([row.split for row in rows], pa.string()),
        pa.array([row.reason for row in rows], pa.string()),
        pa.array([row.start for row in rows], pa.int32()),
        pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(ids, pa.int32())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


class Files:
    """Memory-mapped files of samples. Takes about eight bytes of memory per sample, whatever its length."""

    def __init__(self, paths: Sequence[Path]) -> None:
        readers = [pa.ipc.open_file(pa.memory_map(str(path))) for path in paths]
        self._batches = [r.get_batch(i) for r in readers for i in range(r.num_record_batches)]
        self._first = np.cumsum([0, *(b.num_rows for b in self._batches)])
        self._views = [
            (b.column("ids").offsets.to_numpy(), b.column("ids").values.to_numpy(), b.column("start").to_numpy())
            for b in self._batches
        ]

    def of(self, split: str) -> "Samples":
        """The samples of a split, in the order of the files."""
        rows, lengths, starts = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
        for batch, first, view in zip(self._batches, self._first, self._views, strict=False):
            wanted = pc.and_(pc.equal(batch.column("split"), split), pc.equal(batch.column("reason"), ""))
            places = np.flatnonzero(wanted.to_numpy(False))
            offsets, _, first_targets = view
            rows.append(places + first)
            lengths.append(np.diff(offsets).astype(np.int32)[places])
            starts.append(first_targets[places])
        return Samples(self, np.concatenate(rows), np.concatenate(lengths), np.concatenate(starts))

    def left_out(self, splits: Sequence[str]) -> dict[str, int]:
        """Rows of these splits that are no sample, by reason."""
        counts: Counter[str] = Counter()
        for batch in self._batches:
            wanted = pc.and_(
                pc.is_in(batch.column("split"), pa.array(splits)), pc.not_equal(batch.column("reason"), "")
            )
            for found in pc.value_counts(batch.column("reason").filter(wanted)).to_pylist():
                counts[found["values"]] += found["counts"]
        return dict(counts)

    def read(self, row: int) -> Example:
        """One row; its ids are a view of the mapped file."""
        batch = int(np.searchsorted(self._first, row, side="right")) - 1
        place = row - int(self._first[batch])
        offsets, ids, starts = self._views[batch]
        name = self._batches[batch].column("sample_id")[place].as_py()
        return Example(name, ids[offsets[place] : offsets[place + 1]], int(starts[place]))


class Samples(Sequence[Example]):
    """Samples of one split by number. `lengths`, `n_targets`: tokens and target tokens of each sample (int32)."""

    def __init__(self, files: Files, rows: np.ndarray, lengths: np.ndarray, starts: np.ndarray) -> None:
        self._files, self._rows = files, rows
        self.lengths, self.n_targets = lengths, lengths - starts

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item):
        if isinstance(item, slice):
            return [self._files.read(int(row)) for row in self._rows[item]]
        return self._files.read(int(self._rows[item]))


def lengths(examples: Sequence[Example]) -> np.ndarray:
    """The number of tokens of each sample."""
    if isinstance(examples, Samples):
        return examples.lengths
    return np.fromiter((len(e.ids) for e in examples), np.int32, len(examples))


def shortest(examples: Sequence[Example], n: int) -> list[Example]:
    """The `n` samples with the fewest tokens; among equally long ones the first."""
    return [examples[int(i)] for i in np.argsort(lengths(examples), kind="stable")[:n]]
