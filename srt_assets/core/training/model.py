"""Prepares the student for training: device, precision, loading, adapters. Saving it is in `saved.py`."""

from collections import Counter

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from srt_assets.core.errors import UserError
from srt_assets.core.students.loading import load_whole
from srt_assets.core.training.job import Job


def pick_device(job: Job) -> torch.device:
    """The kind of device. UserError if the settings name a GPU and there is none."""
    if job.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.device(job.device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("student.devices names a GPU, but torch sees none", 'set student.devices = "auto" or "cpu"')
    return torch.device(kind)


def check_processes(job: Job, device: torch.device) -> None:
    """UserError if there are more processes than GPUs."""
    if device.type == "cuda" and job.processes > torch.cuda.device_count():
        raise UserError(
            f"training.processes is {job.processes}, but torch sees {torch.cuda.device_count()} GPU(s)",
            "set training.processes to at most their number, or name more in student.devices",
        )


def pick_dtype(job: Job, device: torch.device) -> str:
    """The precision of forward passes: fp32, bf16 or fp16. The trained weights themselves are fp32."""
    if job.dtype == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if job.dtype == "fp16" and device.type != "cuda":
        raise UserError("fp16 training needs a GPU", 'set student.dtype = "auto", "bf16" or "fp32"')
    return job.dtype


def load_model(job: Job) -> PreTrainedModel:
    """The student with fp32 weights. Half-precision weights would lose updates of a learning rate of 2e-5."""
    model = load_whole(job.student_path, dtype=torch.float32)
    model.config.use_cache = False
    try:
        if model.generation_config is not None:
            model.generation_config.validate(strict=True)
    except ValueError:
        # Some published students set sampling parameters with do_sample off; transformers refuses to save that.
        model.generation_config.do_sample = True
    return model


def add_adapters(model: PreTrainedModel, job: Job) -> PeftModel:
    """Put LoRA adapters on the chosen layers. UserError names the existing layers if a target does not exist."""
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D | nn.Embedding)]
    names = {name.rpartition(".")[2] for name in layers}
    missing = [t for t in job.lora.targets if not any(n == t or n.endswith(f".{t}") for n in layers)]
    if missing:
        raise UserError(
            f"the student has no layer named {', '.join(missing)} that could get an adapter",
            f"set training.lora_targets to some of {', '.join(sorted(names - {'lm_head'}))}, or to [] for all of them",
        )
    config = LoraConfig(
        r=job.lora.rank,
        lora_alpha=job.lora.alpha,
        lora_dropout=job.lora.dropout,
        target_modules=list(job.lora.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    if job.lora.merge:
        _check_ties(adapted)
    return adapted


def _check_ties(model: PeftModel) -> None:
    """UserError if an adapter is on a matrix that another layer shares: merging would change both layers."""
    users = Counter(id(w) for module in model.modules() for w in module.parameters(recurse=False))
    adapted = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    tied = sorted(n.rpartition(".")[2] for n, m in adapted.items() if users[id(m.get_base_layer().weight)] > 1)
    if tied:
        raise UserError(
            f"LoRA on {' and '.join(tied)} cannot be merged: the student ties its input and output embeddings to one "
            "matrix, and the merged adapter would change both",
            f"take {', '.join(tied)} out of training.lora_targets, or set training.lora_merge = false",
        )


def stop_on(model: PreTrainedModel, last: int, eos: int | None) -> None:
    """Make generation stop on the last token of a trained answer, on EOS, and on the ids configured before."""
    config = model.generation_config
    if config is None:
        return
    before = config.eos_token_id
    stops = [last, eos, *(before if isinstance(before, list) else [before])]
    known = list(dict.fromkeys(stop for stop in stops if stop is not None))
    config.eos_token_id = known if len(known) > 1 else known[0]
