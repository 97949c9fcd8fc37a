"""Saves the trained model and measures the saved checkpoint.

After the last step, on one process: round the weights to the precision in which they are stored, measure the model,
write it, load it again from its directory and measure it again. The steps are in `train.py`; the allowed difference is
in `results.py`.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from srt_assets.core.errors import StageError, UserError
from srt_assets.core.students.loading import load_whole
from srt_assets.core.training import memory
from srt_assets.core.training.data import Data
from srt_assets.core.training.job import Job
from srt_assets.core.training.packed import mean_loss
from srt_assets.core.training.samples import Example

NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# Number of training rows to compare on if nothing is held out.
FEW = 8


def stored_dtype(path: str) -> torch.dtype:
    """The precision of the student's stored weights; the finetuned model is stored in it too. UserError if a training
    cannot write it.
    """
    named = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True).dtype
    if not isinstance(named, torch.dtype):
        return torch.float32
    if named not in NAMES:
        raise UserError(
            f"the weights of the student in {path} are stored as {named}, in which no finetuned one is saved",
            "save the student in bfloat16 or float32 and register that",
        )
    return named


def _weights(model: nn.Module, frozen_only: bool = False) -> Iterator[torch.Tensor]:
    """The floating-point tensors of a checkpoint, each once, also if two layers share it."""
    # Computed buffers are not among them: loading a model in half precision computes them in full precision.
    distinct = {id(w): w for w in model.state_dict(keep_vars=True).values() if w.is_floating_point()}
    return (w for w in distinct.values() if not (frozen_only and w.requires_grad))


def cast(model: nn.Module, dtype: torch.dtype, frozen_only: bool = False) -> None:
    """Round the weights to this precision one at a time, so that the model is never in memory twice."""
    for weight in _weights(model, frozen_only):
        weight.data = weight.data.to(dtype)


@contextmanager
def as_stored(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within the block, the model has weights of this precision; afterwards they are restored exactly.

    Only weights that the rounding changes are copied: for a student just loaded, only new adapters.
    """
    before: list[tuple[torch.Tensor, torch.dtype, torch.Tensor | None]] = []
    for weight in _weights(model):
        exact, rounded = weight.data, weight.data.to(dtype)
        same = torch.equal(rounded.to(exact.dtype), exact)
        before.append((weight, exact.dtype, None if same else exact))
        weight.data = rounded
    try:
        yield
    finally:
        for weight, kind, kept in before:
            weight.data = weight.data.to(kind) if kept is None else kept


def gathered(job: Job, weights: dict[str, torch.Tensor], like: Any) -> PreTrainedModel:
    """A complete model from weights gathered from sharded processes, with the configuration of `like`."""
    model = load_whole(job.student_path, dtype=stored_dtype(job.student_path))
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.config, model.generation_config = like.config, like.generation_config
    return model


def release(model: nn.Module) -> None:
    """Free the memory of a model, even if something still refers to it."""
    for weight in (*model.parameters(), *model.buffers()):
        weight.data, weight.grad = torch.empty(0, device=weight.device, dtype=weight.dtype), None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def save(
    model: Any, tokenizer, job: Job, directory: Path, samples: Data, budget: int, device: torch.device
) -> dict[str, Any]:
    """Write the trained model, measure the saved one, and return the facts for the record. `model` is freed.

    Writes a standard checkpoint: safetensors, config, generation config, tokenizer. LoRA is merged if the job says so.
    The losses after training are those of the model loaded from `directory`. On the rows `compared_on` it is compared
    with the trained model, rounded to the same precision, and a merged model with the unmerged one. `device`: where it
    was trained. StageError if the saved model cannot be loaded.
    """
    dtype = stored_dtype(job.student_path)
    sets = {"eval_loss_after": samples.held_out, "eval_original_loss_after": samples.held_out_original}
    compared: Sequence[Example]
    if samples.held_out:
        compared, what = samples.held_out, f"{len(samples.held_out)} held-out rows"
    else:
        compared = samples.train[:FEW]
        what = f"the first {len(compared)} training rows: none is held out"
    adapted = isinstance(model, PeftModel)
    merged = adapted and job.lora.merge
    device = _place(model, dtype, device)
    facts: dict[str, Any] = {}
    if merged:
        # Compared before rounding: in half precision a merged matrix is rounded differently from its parts.
        apart = mean_loss(model, compared, budget)
        model = model.merge_and_unload()
        facts["merge_difference"] = abs(mean_loss(model, compared, budget) - apart)
    # Unmerged adapters are saved in the trained precision, and loaded on top of the stored student.
    cast(model, dtype, frozen_only=adapted and not merged)
    model.to(device)
    live = mean_loss(model, compared, budget)
    _write(model, tokenizer, directory)
    release(model)
    saved = _load(job, directory, merged or not adapted).to(device)
    losses = {name: mean_loss(saved, rows, budget) for name, rows in sets.items() if rows}
    found = losses["eval_loss_after"] if samples.held_out else mean_loss(saved, compared, budget)
    release(saved)
    return facts | {
        **losses,
        "saved_dtype": NAMES[dtype],
        "compared_on": what,
        "trained_loss": live,
        "saved_loss": found,
        "saved_difference": abs(found - live),
    }


def _place(model: nn.Module, dtype: torch.dtype, trained_on: torch.device) -> torch.device:
    """The device to measure on: that of the training, or main memory if the whole model does not fit there."""
    here = next(model.parameters()).device
    size = dtype.itemsize * sum(w.numel() for w in _weights(model))
    if here.type == trained_on.type or size < memory.FILL * memory.available(trained_on):
        return trained_on
    return here


def _write(model: Any, tokenizer, directory: Path) -> None:
    if isinstance(model, PreTrainedModel):
        model.config.use_cache = True
    model.save_pretrained(str(directory), safe_serialization=True)
    tokenizer.save_pretrained(directory)


def _load(job: Job, directory: Path, whole: bool) -> nn.Module:
    """Load the checkpoint as its users do; an adapter is loaded on top of the stored student."""
    try:
        if whole:
            return load_whole(directory, dtype="auto")
        return PeftModel.from_pretrained(load_whole(job.student_path, dtype="auto"), str(directory))
    except UserError as error:
        raise StageError(
            f"the trained model was saved, but cannot be loaded again: {error.message}",
            "its last saved state is kept; report this with the name of the student",
        ) from error
