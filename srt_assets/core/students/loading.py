"""Loads a checkpoint into memory, only if all its weights are there. Scoring and training both load models here."""

from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from srt_assets.core.errors import UserError
from srt_assets.core.students.building import bounded
from srt_assets.core.students.checkpoint_files import model_of

_OF_THE_MACHINE = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
_LONGEST = 300
_IN_ITS_OWN_WORDS = (OSError, ValueError, KeyError, ImportError, SafetensorError, StrictDataclassError)


def load_tokenizer(path: Path | str):
    """The student's tokenizer. UserError if it cannot be loaded without running code from the checkpoint."""
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust tokenizers raise a bare Exception
        if "trust_remote_code" in str(error):
            raise UserError(
                f"the tokenizer in {path} needs code of its own, which is never run here",
                "save it as a tokenizer.json, or take a student whose tokenizer transformers ships",
            ) from None
        raise UserError(
            f"the tokenizer in {path} cannot be loaded: {_in_short(error)}", "save the tokenizer again"
        ) from error


def load_whole(path: Path | str, **options: Any) -> PreTrainedModel:
    """The causal language model in `path`, without running its code, reading pickles or using the network.

    transformers fills missing weights with random numbers and only warns. Here missing weights are a UserError, as are
    weights of another shape, weights that are not finite, and files that cannot be read.
    """
    config, _, held = model_of(Path(path))
    _check_kind(path, config.get("model_type"))
    try:
        with bounded(Path(path), held, "quantization_config" in config):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # reported below by name
                output_loading_info=True,
                **options,
            )
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, _OF_THE_MACHINE) or "can't allocate memory" in str(error):
            raise
        # An invalid configuration may fail with any error, such as a division by zero.
        said = _in_short(error)
        if not isinstance(error, _IN_ITS_OWN_WORDS):
            said = f"{type(error).__name__}: {said}"
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
            "save the model itself, whole: model.save_pretrained(directory)",
        )
    if broken := [name for name, weight in model.named_parameters() if not _finite(weight)]:
        raise UserError(
            f"the model in {path} has weights that are no numbers (NaN or infinite): {_some(broken)}",
            "its training broke: take a checkpoint from before that",
        )
    return model


def _check_kind(path: Path | str, model_type: Any) -> None:
    """UserError if transformers has no causal language model of this type."""
    ours = f"transformers {transformers.__version__}"
    if not isinstance(model_type, str):
        raise UserError(f"the config.json of the model in {path} names no model_type", "save the model again")
    if model_type not in CONFIG_MAPPING_NAMES:
        raise UserError(
            f"the model in {path} is of model type {model_type!r}, which {ours} does not know",
            "update transformers, or take another student",
        )
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"the model in {path} is of model type {model_type!r}, of which {ours} has no causal language model",
            "take a causal language model, one that predicts each token from those before it",
        )


def _finite(weight: torch.Tensor) -> bool:
    """False if a weight is NaN or infinite. In fp16 only NaN counts: a weight may overflow there, and the affected
    scores are repeated in fp32.
    """
    if weight.is_meta or not weight.numel():
        return True
    low, high = weight.aminmax()
    return not bool(low.isnan()) if weight.dtype == torch.float16 else bool(low.isfinite() and high.isfinite())


def _in_short(error: BaseException) -> str:
    """A library's error message as one line of limited length."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]} …"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
