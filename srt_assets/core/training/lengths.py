"""How long records are for a student, in tokens of prompt and answer, as they are trained. Loads no weights.

Texts are encoded in `scoring/encoding.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from srt_assets.core import scoring
from srt_assets.core.lake import Lake
from srt_assets.core.scoring.encoding import Encoder, Texts
from srt_assets.core.students import checkpoints
from srt_assets.core.students.loading import load_tokenizer
from srt_assets.settings import Settings

_UNLIMITED = 1 << 30


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompt and answer. `scored_whole`: the share (0 to 1) of records that scoring does not cut. `trained`:
    the share that fits into `training.max_length`. `not_encodable`: records with a token that the student has no
    embedding for.
    """

    student: str
    median: int
    p95: int
    longest: int
    scored_whole: float
    trained: float
    not_encodable: int


def lengths(settings: Settings, lake: Lake, slug: str, texts: Sequence[Texts]) -> Lengths | None:
    """Lengths of these records for a registered student; None if it can encode none of them.

    UserError if the student is not registered, or if its chat template cannot be used.
    """
    info = checkpoints.get(lake, slug)
    encoder = Encoder(load_tokenizer(info.path), settings.student.template, settings.student.protocol, _UNLIMITED)
    found = encoder.for_training(texts, _UNLIMITED)
    tokens = np.array([len(one.ids) for one in found if not isinstance(one, str)])
    if not len(tokens):
        return None
    window = min(settings.training.max_length, info.max_positions or settings.training.max_length)
    return Lengths(
        student=slug,
        median=int(np.median(tokens)),
        p95=int(np.percentile(tokens, 95)),
        longest=int(tokens.max()),
        # The end-of-turn tokens are trained but not scored.
        scored_whole=float((tokens - len(encoder.end) <= scoring.max_length(settings, info)).mean()),
        trained=float((tokens <= window).mean()),
        not_encodable=len(found) - len(tokens),
    )
