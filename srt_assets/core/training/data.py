"""Turns rows of text into samples of token ids, encoded exactly as for scoring. File format: `samples.py`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from srt_assets.core.errors import UserError
from srt_assets.core.scoring import chat
from srt_assets.core.scoring.encoding import OUT_OF_VOCABULARY, Encoder, Pass, Texts
from srt_assets.core.training import rows as splits
from srt_assets.core.training import samples
from srt_assets.core.training.job import Job
from srt_assets.core.training.samples import Encoded, Samples

# Folder of the samples while a training is unfinished.
SAMPLES = "samples"


@dataclass(frozen=True)
class Data:
    """Samples of each split. `end`: the ids that end each sample. `prompt_note`: what users must know about the prompt.
    `left_out`: number of rows that became no sample, by reason.
    """

    train: Samples
    held_out: Samples
    held_out_original: Samples
    end: tuple[int, ...]
    prompt_note: str = ""
    left_out: dict[str, int] = field(default_factory=dict)


def load(
    job: Job,
    tokenizer,
    window: int,
    vocabulary: int,
    rank: int = 0,
    processes: int = 1,
    meet: Callable[[], object] = lambda: None,
    each: Callable[[], None] = lambda: None,
) -> Data:
    """Tokenize the job's rows into files that all processes read; each process tokenizes its share.

    A sample longer than `window` tokens is left out and counted, not cut: a model that learns from cut responses does
    not learn to stop. A sample with a token id of `vocabulary` or more, which has no embedding, is left out too.
    UserError if no sample is left to train on.

    `meet` waits for the other processes. `each` is called for every batch of rows, and may raise to end the work.
    """
    encoder = Encoder(tokenizer, job.template, job.protocol, window)
    if encoder.chat:
        chat.check(encoder.chat, Path(job.student_path), job.student_fingerprint)
    if (last := encoder.end[-1]) >= vocabulary:
        what = (
            "the tokenizer's EOS token" if last == tokenizer.eos_token_id else "the end of a turn of its chat template,"
        )
        raise UserError(
            f"{what} {tokenizer.convert_ids_to_tokens(last)!r} has id {last}, but the student has embeddings for "
            f"{vocabulary} tokens only",
            "set eos_token in its tokenizer_config.json to one it has, or resize its embeddings",
        )
    folder = job.directory / SAMPLES
    samples.write(folder / f"{rank}.arrow", _encoded(job, encoder, window, vocabulary, rank, processes, each))
    meet()
    files = samples.Files([folder / f"{i}.arrow" for i in range(processes)])
    left_out = files.left_out((splits.TRAIN, splits.HELD_OUT))
    train, held_out, original = map(files.of, (splits.TRAIN, splits.HELD_OUT, splits.HELD_OUT_ORIGINAL))
    if not train:
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(left_out.items()))
        raise UserError(
            f"no training sample is left within {window} tokens ({why or 'all rows are held out'})",
            "raise training.max_length (up to the student's window), or lower training.held_out",
        )
    note = encoder.chat.turns.note if encoder.chat else ""
    return Data(train, held_out, original, encoder.end, note, left_out)


def _encoded(
    job: Job, encoder: Encoder, window: int, vocabulary: int, rank: int, processes: int, each: Callable[[], None]
) -> Iterator[list[Encoded]]:
    """This process's share of the rows, as samples or with the reason why they are none."""
    with pq.ParquetFile(job.rows_file) as file:
        n = file.num_row_groups
        groups = range(rank * n // processes, (rank + 1) * n // processes)
        for batch in file.iter_batches(splits.AT_ONCE, list(groups)) if groups else ():
            each()
            rows = batch.to_pylist()
            # Prompt and response as in scoring; the end of the answer is learned too.
            texts = [Texts(r["instruction"], r["input"], r["response"]) for r in rows]
            found = encoder.for_training(texts, window)
            yield [_one(r["sample_id"], r["split"], p, vocabulary) for r, p in zip(rows, found, strict=True)]


def _one(sample_id: str, split: str, found: Pass | str, vocabulary: int) -> Encoded:
    reason = found if isinstance(found, str) else _unfit(found, vocabulary)
    if isinstance(found, str) or reason:
        return Encoded(sample_id, split, np.zeros(0, np.int32), reason=reason)
    return Encoded(sample_id, split, found.ids, found.start)


def _unfit(one: Pass, vocabulary: int) -> str:
    if int(one.ids.max()) >= vocabulary:
        return OUT_OF_VOCABULARY
    return "too_long" if one.truncated else ""
