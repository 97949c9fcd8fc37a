"""A checkpoint into memory with every weight it needs, or not at all. Scoring and training both load from here."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from srt_assets.core.errors import UserError
from srt_assets.core.student.building import bounded
from srt_assets.core.student.checkpoint_files import model_of

_OF_THE_MACHINE = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
_IN_ITS_OWN_WORDS = (OSError, ValueError, KeyError, ImportError, SafetensorError, StrictDataclassError)


def load_tokenizer(path: Path | str):
    """The student's tokenizer. Raises UserError if it cannot be loaded without running code from the checkpoint."""
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust tokenizers have no error of their own, and call it just that
        raise UserError(f"the tokenizer in {path} cannot be loaded: {error}", "save the tokenizer again") from error


def load_whole(path: Path | str, **options: Any) -> PreTrainedModel:
    """The causal language model in `path`; no code of its own is run, no pickle read, no network asked.

    transformers fills weights that a checkpoint lacks with random numbers and only warns: here that is a UserError,
    as are weights of another shape and a file that cannot be read.
    """
    config, _, held = model_of(Path(path))
    try:
        with bounded(Path(path), held, "quantization_config" in config):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # to be named below
                output_loading_info=True,
                **options,
            )
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, _OF_THE_MACHINE) or "can't allocate memory" in str(error):
            raise
        # A configuration that makes no sense fails anywhere: a division by zero, a list that is too short.
        said = str(error) if isinstance(error, _IN_ITS_OWN_WORDS) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"the model in {path} cannot be loaded: {said}", "check that it is a causal language model, saved whole"
        ) from error
    model, found = loaded
    wrong = sorted(str(key[0]) for key in found["mismatched_keys"])
    if wrong:
        raise UserError(
            f"the model in {path} has weights of another shape than its config.json says: {_some(wrong)}",
            "put the config.json there that the weights were saved with",
        )
    missing, others = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing:
        raise UserError(
            f"the model in {path} lacks weights: {_some(missing)}"
            + (f"; it has others, such as {others[0]}" if others else ""),
            "save the model itself, not a wrapper around it (torch.compile, DDP): model.save_pretrained(directory)",
        )
    return model


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
