"""What a checkpoint says of itself that makes it no student: one sentence that names the cause, before it is loaded.

Reads what others have read already: the configuration, and the names and shapes of the tensors.
"""

from pathlib import Path

from srt_assets.core.errors import UserError


def check_config(directory: Path, config: dict) -> None:
    """Raise UserError if this configuration is of no causal language model that can be loaded as it is."""
    if config.get("is_encoder_decoder"):
        raise UserError(
            f"{directory} is an encoder-decoder ({_kind(config)}): how likely a text is depends on a second one",
            "take a decoder-only language model",
        )


def _kind(config: dict) -> str:
    named = config.get("architectures")
    return str(named[0] if isinstance(named, list) and named else config.get("model_type", "unknown"))
