"""Rows of text to samples of token ids, exactly as they were scored, plus EOS."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from srt_assets.core.errors import UserError
from srt_assets.core.student.encoding import OUT_OF_VOCABULARY, Encoder, Pass, Texts
from srt_assets.core.training import rows as splits
from srt_assets.core.training.job import Job
from srt_assets.core.training.packed import Example


@dataclass(frozen=True)
class Data:
    """Samples of each split, and how many rows could not become one, by reason."""

    train: list[Example]
    held_out: list[Example]
    held_out_original: list[Example]
    left_out: dict[str, int] = field(default_factory=dict)


def load(job: Job, tokenizer, window: int, vocabulary: int) -> Data:
    """Tokenize the job's rows. A sample longer than `window` tokens is left out and counted, never cut: a model that
    learns from cut responses learns not to stop. So is one with a token that the student, of `vocabulary` rows, has no
    embedding for. UserError if nothing is left to train on.
    """
    if (tokenizer.eos_token_id or 0) >= vocabulary:
        raise UserError(
            f"the tokenizer's EOS token {tokenizer.eos_token!r} has id {tokenizer.eos_token_id}, but the student has "
            f"embeddings for {vocabulary} tokens only",
            "set eos_token in its tokenizer_config.json to one it has, or resize its embeddings",
        )
    table = pq.read_table(Path(job.rows_file)).to_pylist()
    encoder = Encoder(tokenizer, job.template, job.protocol, window)
    # Prompt and response as scored; EOS is part of what is learned.
    encoded = encoder.for_training([Texts(r["instruction"], r["input"], r["response"]) for r in table], window)
    found: dict[str, list[Example]] = {s: [] for s in (splits.TRAIN, splits.HELD_OUT, splits.HELD_OUT_ORIGINAL)}
    left_out: Counter[str] = Counter()
    for row, one in zip(table, encoded, strict=True):
        reason = one if isinstance(one, str) else _unfit(one, tokenizer.eos_token_id, vocabulary)
        if isinstance(one, Pass) and not reason:
            found[row["split"]].append(Example(row["sample_id"], one.ids, one.start))
        elif row["split"] != splits.HELD_OUT_ORIGINAL:
            left_out[reason] += 1
    if not found[splits.TRAIN]:
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(left_out.items()))
        raise UserError(
            f"no training sample is left within {window} tokens ({why or 'all rows are held out'})",
            "raise training.max_length (up to the student's window), or lower training.held_out",
        )
    return Data(found[splits.TRAIN], found[splits.HELD_OUT], found[splits.HELD_OUT_ORIGINAL], dict(left_out))


def _unfit(one: Pass, eos: int, vocabulary: int) -> str:
    if int(one.ids.max()) >= vocabulary:
        return OUT_OF_VOCABULARY
    return "too_long" if one.truncated or one.ids[-1] != eos else ""
