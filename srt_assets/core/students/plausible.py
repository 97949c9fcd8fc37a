"""Checks the numbers of an untrusted configuration against the weights, before a model is built.

With ten million layers, or a vocabulary of 10**12, transformers would build for hours, or take all memory, before it
found that the weights have another shape. A configuration that passes here may still be wrong; `building.py` limits the
size of the model while it is built.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srt_assets.core.errors import UserError
from srt_assets.core.students.headers import Held


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Each of these is a whole number or null, or a list of whole numbers, one per layer.
_LAYERS = _names("num_hidden_layers num_layers n_layer n_layers decoder_layers encoder_layers num_decoder_layers")
_HEADS = _names("num_attention_heads num_heads n_head n_heads num_key_value_heads num_kv_heads decoder_attention_heads")
_SIZES = _names("hidden_size n_embd d_model vocab_size intermediate_size n_inner d_ff ffn_dim decoder_ffn_dim head_dim")
# The longest sequence, in the order in which `checkpoints` looks for it.
POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
_COUNTS = _LAYERS | _HEADS | _SIZES
# Values that must not be 0.
_NEEDED = _names("num_hidden_layers n_layer n_layers hidden_size n_embd d_model vocab_size num_attention_heads")
# Parts that are built one by one, under many names: num_local_experts, n_routed_experts, linear_num_key_heads …
_ONE_BY_ONE = re.compile(r"(^|_)(layers?|experts?|heads?|blocks)$")

# Limits. The largest known values are a hidden size of 16,384, a vocabulary of 290,943, 128 layers, 16,384 experts and
# 10,485,760 positions. A configuration may describe weights that the checkpoint leaves out, so the limits do not come
# from the weights alone.
_MOST_LAYERS = 1 << 12
_MOST_PARTS = 1 << 16
_LARGEST = 1 << 20
_MOST_POSITIONS = 1 << 31
_DEEPEST = 4

# Families whose heads share the hidden size evenly, unless `head_dim` says otherwise.
_EVEN = _names(
    "bloom falcon gpt2 gpt_bigcode gpt_neox gptj llama mistral mixtral olmo olmo2 opt phi phi3 qwen2 qwen2_moe "
    "stablelm starcoder2"
)


def check(config: dict[str, Any], file: Path, held: Held) -> None:
    """UserError names the file and the first value that is impossible for a model with these weights."""
    for name, value in _numbers(config):
        key = name.rpartition(".")[2]
        why = "which is none at all" if name in _NEEDED and value == 0 else _wrong(key, value, held)
        if why:
            raise UserError(
                f"{file} says {name} = {_shown(value)}, {why}",
                "put the config.json there that the weights were saved with",
            )
    if why := _uneven(config):
        raise UserError(f"{file} says {why}", "put the config.json there that the weights were saved with")


def _numbers(config: dict[str, Any], above: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Names and values of all counts and sizes, also in nested configurations."""
    for key, value in config.items():
        if isinstance(value, dict):
            # Deeper levels hold tables, for example of quantization, and no models.
            if depth < _DEEPEST:
                yield from _numbers(value, f"{above}{key}.", depth + 1)
        elif value is not None and (key in _COUNTS or key in POSITIONS or _ONE_BY_ONE.search(key)):
            yield f"{above}{key}", value


def _wrong(key: str, value: Any, held: Held) -> str:
    values = value if isinstance(value, list) else [value]
    if key in _COUNTS or key in POSITIONS:
        # Some write positions as 1200.0.
        whole = [int(v) if key in POSITIONS and type(v) is float and v.is_integer() else v for v in values]
        if not all(type(one) is int for one in whole):
            return "which is no whole number"
        if min(values, default=0) < 0:
            return "which is less than 0"
    largest = max((one for one in values if isinstance(one, int | float)), default=0)
    if key in POSITIONS:
        return "" if largest <= _MOST_POSITIONS else "more positions than any model has"
    if key in _COUNTS and not _ONE_BY_ONE.search(key):
        most, what = max(_LARGEST, held.longest), f"but the longest side of its weights is {held.longest:,}"
    else:
        most = max(_MOST_LAYERS if key in _LAYERS else _MOST_PARTS, held.tensors)
        what = f"but its weights are {held.tensors:,} tensors"
    return "" if largest <= most else what


def _uneven(config: dict[str, Any]) -> str:
    """The two values of which one must divide the other and does not, for families that need it; '' if all is well."""
    if config.get("model_type") not in _EVEN or config.get("head_dim"):
        return ""
    hidden, heads = _first(config, "hidden_size", "n_embd"), _first(config, "num_attention_heads", "n_head")
    shared = _first(config, "num_key_value_heads")
    if hidden and heads and hidden[1] % heads[1]:
        return f"{heads[0]} = {heads[1]}, which does not divide {hidden[0]} = {hidden[1]}"
    if shared and heads and heads[1] % shared[1]:
        return f"{shared[0]} = {shared[1]}, which does not divide {heads[0]} = {heads[1]}"
    return ""


def _first(config: dict[str, Any], *names: str) -> tuple[str, int] | None:
    return next(((name, config[name]) for name in names if type(config.get(name)) is int and config[name] > 0), None)


def _shown(value: Any) -> str:
    text = f"{value:,}" if type(value) is int else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
