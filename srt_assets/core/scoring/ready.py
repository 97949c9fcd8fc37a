"""A student loaded to score: on its device, in its precision, asked in the ways that it has proved here or before."""

from pathlib import Path

import torch
from transformers.utils import logging as hf_logging

from srt_assets.core.errors import UserError
from srt_assets.core.scoring.model import Forward
from srt_assets.core.scoring.proof import TEXT, Proof, prove
from srt_assets.core.scoring.proofs import Place
from srt_assets.core.students.loading import load_whole


def load_model(
    path: Path, dtype: torch.dtype, device: str, tokenizer=None, place: Place | None = None
) -> tuple[Forward, Proof]:
    """Load a checkpoint and what is proved of it. `device` "auto" spreads it over all GPUs (`device_map`).

    `tokenizer`: for ordinary text to measure with; `place`: where the proof is kept, None measures each time. Raises
    UserError if the student has no likelihood to score with.
    """
    if place and (known := place.known()) and known.refused:
        raise _refusal(path, known)
    hf_logging.disable_progress_bar()  # a bar of its own would tear the run's
    model = load_whole(path, dtype=dtype, device_map=device if device != "cpu" else None)
    model.eval().requires_grad_(False)

    def measure() -> Proof:
        return prove(model, *_ids(tokenizer)) if tokenizer else prove(model)

    proof = place.keep(measure) if place else measure()
    if proof.refused:
        raise _refusal(path, proof)
    return Forward(model, proof.ways), proof


def _ids(tokenizer) -> tuple[list[int], list[int]]:
    """Ids of ordinary text, and those that stand for none: a mark of an image makes some models look for one."""
    marks = {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    return tokenizer(TEXT, add_special_tokens=False)["input_ids"], sorted(marks | {*tokenizer.all_special_ids})


def _refusal(path: Path, proof: Proof) -> UserError:
    return UserError(
        f"the student {path.name} cannot be scored: it {proof.refused}",
        "take a causal language model, one that predicts each token from those before it",
    )
