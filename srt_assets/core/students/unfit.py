"""Refuses checkpoints that cannot be students, with an error that names the cause, before they are loaded.

Other trainers leave folders that look like checkpoints: weights sharded over processes, wrapped or quantized weights,
an adapter without its base. The checks use the configuration, the names, types and shapes of the tensors, and file
names. Checks that need the weights are in `loading.py`.
"""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srt_assets.core import files
from srt_assets.core.errors import UserError

# Part of a tensor's name, the wrapper that the model was saved in, and how to save the model without it.
_WRAPPED = (
    (r"(^|\.)_orig_mod\.", "as a compiled model (torch.compile)", "model._orig_mod.save_pretrained(directory)"),
    (r"(^|\.)_fsdp_wrapped_module\.", "inside FSDP", "gather its full state dict, or let accelerate save it"),
    (r"(^|\.)_checkpoint_wrapped_module\.", "inside activation checkpointing", "save the model without that wrapper"),
    (r"^module\.", "inside DistributedDataParallel or DeepSpeed", "model.module.save_pretrained(directory)"),
    (r"^base_model\.model\.|\.lora_[AB]\.|\.base_layer\.", "with an adapter that is not merged (peft)",
     "model.merge_and_unload().save_pretrained(directory)"),
)  # fmt: skip
_WRAPPERS = [(re.compile(part), where, remedy) for part, where, remedy in _WRAPPED]
_QUANTIZED = re.compile(
    r"\.(qweight|qzeros|g_idx|weight_packed|weight_scale(_inv)?|absmax|quant_map|SCB|quant_state\..*|(gate_up|down)_proj_blocks)$"
)
_PLAIN = ("F64", "F32", "F16", "BF16")
_UNQUANTIZE = "take the model as it was before, or write it out in bf16: model.dequantize().save_pretrained(directory)"
# Heads that predict something other than a token of the vocabulary.
_OTHER_HEADS = re.compile(r"For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|MaskedLM)$")
# Files found in a checkpoint without weights: what they are, and how to turn them into weights.
_INSTEAD = (
    ("*.distcp", "its weights in pieces of FSDP", "put them together: accelerate merge-weights"),
    ("*/*.distcp", "its weights in pieces of FSDP", "put them together: accelerate merge-weights"),
    ("*zero_pp_rank*", "its weights in pieces of DeepSpeed ZeRO", "put them together: python zero_to_fp32.py"),
    ("global_step*/*zero_pp_rank*", "its weights in pieces of DeepSpeed ZeRO", "run its zero_to_fp32.py"),
    ("*.gguf", "its weights as GGUF only", "take the safetensors that it was made from"),
    ("*.h5", "its weights for TensorFlow only", "save it with PyTorch, as safetensors"),
    ("*.msgpack", "its weights for Flax only", "save it with PyTorch, as safetensors"),
    ("model-*-of-*.safetensors", "shards of weights, but no index of them", "copy model.safetensors.index.json too"),
)


def check_folder(directory: Path) -> None:
    """UserError if this is an adapter without its base model."""
    adapter = directory / "adapter_config.json"
    if files.is_there(adapter) and not any(directory.glob("model*.safetensors")):
        try:
            base = json.loads(files.read_text(adapter)).get("base_model_name_or_path")
        except (ValueError, AttributeError):  # the error below does not need the base's name
            base = ""
        raise UserError(
            f"{directory} is a LoRA adapter without its base model{f' ({base})' if base else ''}",
            "merge it into the base and save that: model.merge_and_unload().save_pretrained(directory)",
        )


def check_weights(directory: Path) -> None:
    """UserError if the folder has other files instead of the weights."""
    for pattern, what, remedy in _INSTEAD:
        if any(directory.glob(pattern)):
            raise UserError(f"{directory} has {what}", remedy)


def check_config(directory: Path, config: Mapping[str, Any]) -> None:
    """UserError if this is not the configuration of a causal language model that can be loaded directly."""
    kind = _kind(config)
    if config.get("is_encoder_decoder"):
        raise UserError(
            f"{directory} is an encoder-decoder ({kind}): how likely a text is depends on a second one",
            "take a decoder-only language model",
        )
    if _OTHER_HEADS.search(kind):
        raise UserError(f"{directory} is a {kind}: it does not predict the next token", "take a language model")
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        if how := part.get("quantization_config") or part.get("compression_config"):
            method = how.get("quant_method", "method unknown") if isinstance(how, dict) else how
            raise UserError(f"the weights of {directory} are quantized ({method})", _UNQUANTIZE)
    if config.get("auto_map") and not _ships(str(config.get("model_type"))):
        raise UserError(
            f"{directory} needs code of its own ({kind}), which is never run here",
            "take a model of an architecture that transformers ships",
        )


def strange(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[str, str]:
    """What is wrong with tensors of these names, types and shapes, and the remedy; both '' if nothing is."""
    empty = [name for name, (_, shape) in tensors.items() if 0 in shape]
    if empty:
        return (
            f"holds {len(empty)} empty tensors, such as {empty[0]}: it was saved while DeepSpeed ZeRO-3 had the "
            "weights spread over its processes",
            "save it with stage3_gather_16bit_weights_on_model_save, or run the checkpoint's zero_to_fp32.py",
        )
    for part, where, remedy in _WRAPPERS:
        if name := next(filter(part.search, tensors), ""):
            return f"was saved {where}: its weights are called {name} and the like", remedy
    for name, (kind, shape) in tensors.items():
        if _QUANTIZED.search(name) or (name.endswith("weight") and len(shape) > 1 and kind not in _PLAIN):
            return f"holds quantized weights ({name} of type {kind})", _UNQUANTIZE
    return "", ""


def _kind(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return str(named[0] if isinstance(named, list) and named else config.get("model_type", "unknown"))


def _ships(model_type: str) -> bool:
    """Whether transformers has a folder of this name. Does not import transformers, which takes seconds."""
    found = importlib.util.find_spec("transformers")
    places = (found.submodule_search_locations or []) if found else []
    name = re.sub(r"\W", "_", model_type)
    return any((Path(place) / "models" / name).is_dir() for place in places)
