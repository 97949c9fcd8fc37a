"""A checkpoint into memory with every weight it needs, or not at all. Scoring and training both load from here."""

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
    """The student's tokenizer. Raises UserError if it cannot be loaded without running code from the checkpoint."""
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust tokenizers have no error of their own, and call it just that
        if "trust_remote_code" in str(error):
            raise UserError(
                f"the tokenizer in {path} needs code of its own, which is never run here",
                "save it as a tokenizer.json, or take a student whose tokenizer transformers ships",
            ) from None
        raise UserError(
            f"the tokenizer in {path} cannot be loaded: {_in_short(error)}", "save the tokenizer again"
        ) from error


def load_whole(path: Path | str, **options: Any) -> PreTrainedModel:
    """The causal language model in `path`; no code of its own is run, no pickle read, no network asked.

    transformers fills weights that a checkpoint lacks with random numbers and only warns: here that is a UserError,
    as are weights of another shape or that are no numbers, and a file that cannot be read.
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
    """UserError if transformers knows no causal language model of this kind."""
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
    """False for NaN and for what is infinite; in fp16 for NaN alone: there a number may be too large for the copy,
    which the losses show and fp32 settles.
    """
    if weight.is_meta or not weight.numel():
        return True
    low, high = weight.aminmax()
    return not bool(low.isnan()) if weight.dtype == torch.float16 else bool(low.isfinite() and high.isfinite())


def _in_short(error: BaseException) -> str:
    """What a library says, in one line and not all of it: much is advice for its own users."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]} …"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
