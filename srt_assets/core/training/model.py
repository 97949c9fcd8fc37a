"""The student as something to train: loaded, put in the right precision, given adapters, checked; and saved again."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from srt_assets.core.errors import UserError
from srt_assets.core.student.loading import load_whole
from srt_assets.core.training.job import Job


def pick_device(job: Job) -> torch.device:
    """The kind of device. UserError if the settings name one that is not there."""
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
    """fp32, bf16 or fp16: what forward passes compute in. The trained weights themselves are fp32."""
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
        # Some published students say how to sample and not to: transformers would refuse to save that.
        model.generation_config.do_sample = True
    return model


def add_adapters(model: PreTrainedModel, job: Job) -> PeftModel:
    """Put LoRA adapters on the chosen layers. UserError naming what there is if a target does not exist."""
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
    return get_peft_model(model, config)


def stored_dtype(path: str) -> torch.dtype:
    """The precision the student's weights are stored in; its successor is stored in the same."""
    named = AutoConfig.from_pretrained(path, trust_remote_code=False).dtype
    return named if isinstance(named, torch.dtype) else torch.float32


def stop_on(model: PreTrainedModel, last: int, eos: int | None) -> None:
    """Have generation stop on the last token of an answer as learned, on EOS, and on what it stopped on before."""
    config = model.generation_config
    if config is None:
        return
    before = config.eos_token_id
    stops = [last, eos, *(before if isinstance(before, list) else [before])]
    known = list(dict.fromkeys(stop for stop in stops if stop is not None))
    config.eos_token_id = known if len(known) > 1 else known[0]


def save(model: nn.Module, tokenizer, job: Job, directory: Path, weights: dict[str, torch.Tensor] | None) -> None:
    """A standard checkpoint: safetensors, config, generation config, tokenizer. LoRA is merged if the job says so.

    `weights`: the whole state, where the model itself holds only this process's share of it.
    """
    if isinstance(model, PeftModel) and job.lora.merge:
        model = model.merge_and_unload()
    assert isinstance(model, PreTrainedModel | PeftModel)
    if isinstance(model, PreTrainedModel):
        dtype = stored_dtype(job.student_path)
        model.config.use_cache = True
        model.config.dtype = dtype
        whole = model.state_dict() if weights is None else weights
        # One matrix under two names is two matrices once it was gathered or converted: it is stored under the first.
        twice = {k for k, first in model.all_tied_weights_keys.items() if first in whole}
        weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in whole.items() if k not in twice}
    model.save_pretrained(str(directory), state_dict=weights, safe_serialization=True)
    tokenizer.save_pretrained(directory)
