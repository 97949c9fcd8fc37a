"""Loads a student for scoring: on its device, in its precision, with the fast ways that its proof allows."""

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
    """Load a checkpoint and its proof. `device` "auto" spreads it over all GPUs (`device_map`).

    `tokenizer`: encodes the text for the test; `place`: where the proof is stored, None tests each time. Raises
    UserError if the student is refused.
    """
    if place and (known := place.known()) and known.refused:
        raise _refusal(path, known)
    hf_logging.disable_progress_bar()  # it would disturb the progress bar of the run
    model = load_whole(path, dtype=dtype, device_map=device if device != "cpu" else None)
    model.eval().requires_grad_(False)

    def measure() -> Proof:
        return prove(model, *_ids(tokenizer)) if tokenizer else prove(model)

    proof = place.keep(measure) if place else measure()
    if proof.refused:
        raise _refusal(path, proof)
    return Forward(model, proof.ways), proof


def _ids(tokenizer) -> tuple[list[int], list[int]]:
    """Ids of ordinary text, and ids of special tokens. A special token for images makes some models expect an image."""
    marks = {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    return tokenizer(TEXT, add_special_tokens=False)["input_ids"], sorted(marks | {*tokenizer.all_special_ids})


def _refusal(path: Path, proof: Proof) -> UserError:
    return UserError(
        f"the student {path.name} cannot be scored: it {proof.refused}",
        "take a causal language model, one that predicts each token from those before it",
    )
