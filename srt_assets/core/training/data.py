"""Rows of text to samples of token ids, exactly as they were scored, and what ends an answer."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from srt_assets.core.errors import UserError
from srt_assets.core.student import chat
from srt_assets.core.student.encoding import OUT_OF_VOCABULARY, Encoder, Pass, Texts
from srt_assets.core.training import rows as splits
from srt_assets.core.training.job import Job
from srt_assets.core.training.packed import Example


@dataclass(frozen=True)
class Data:
    """Samples of each split; the ids that `end` each of them; what to know when the result is prompted; how many rows
    could not become a sample, by reason.
    """

    train: list[Example]
    held_out: list[Example]
    held_out_original: list[Example]
    end: tuple[int, ...]
    prompt_note: str = ""
    left_out: dict[str, int] = field(default_factory=dict)


def load(job: Job, tokenizer, window: int, vocabulary: int) -> Data:
    """Tokenize the job's rows. A sample longer than `window` tokens is left out and counted, never cut: a model that
    learns from cut responses learns not to stop. So is one with a token that the student, of `vocabulary` rows, has no
    embedding for. UserError if nothing is left to train on.
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
    table = pq.read_table(Path(job.rows_file)).to_pylist()
    # Prompt and response as scored; what ends the answer is part of what is learned.
    encoded = encoder.for_training([Texts(r["instruction"], r["input"], r["response"]) for r in table], window)
    found: dict[str, list[Example]] = {s: [] for s in (splits.TRAIN, splits.HELD_OUT, splits.HELD_OUT_ORIGINAL)}
    left_out: Counter[str] = Counter()
    for row, one in zip(table, encoded, strict=True):
        reason = one if isinstance(one, str) else _unfit(one, vocabulary)
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
    train, held_out, original = (found[s] for s in (splits.TRAIN, splits.HELD_OUT, splits.HELD_OUT_ORIGINAL))
    note = encoder.chat.turns.note if encoder.chat else ""
    return Data(train, held_out, original, encoder.end, note, dict(left_out))


def _unfit(one: Pass, vocabulary: int) -> str:
    if int(one.ids.max()) >= vocabulary:
        return OUT_OF_VOCABULARY
    return "too_long" if one.truncated else ""
