"""The student loaded: token ids in, negative log-likelihoods of chosen tokens out. Any `AutoModelForCausalLM`.

Right padding without a mask: a causal model never looks to the right, so padding cannot change a score, and attention
keeps its fast path. Only positions that predict a scored token go through the output layer, a chunk at a time, so
memory does not grow with vocabulary x length. Log-softmax is in fp32 whatever the model's precision.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.utils import logging as hf_logging

from srt_assets.core.errors import UserError

_CHUNK_BYTES = {"cpu": 48 << 20, "gpu": 1 << 30}
_PROBE_TOLERANCE = 2e-2  # relative, in low precision; a wrong head or prefix is off by orders of magnitude


@dataclass(frozen=True)
class Prefix:
    """Keys and values of tokens that many sequences begin with: computed once, [1, heads, length, dim] per layer."""

    length: int
    layers: list[tuple[torch.Tensor, torch.Tensor]]

    def cache(self, batch: int) -> DynamicCache:
        """A cache for `batch` sequences that begin with the prefix; expanding copies nothing."""
        shape = (batch, -1, -1, -1)
        return DynamicCache(ddp_cache_data=[(k.expand(shape), v.expand(shape)) for k, v in self.layers])


class Forward:
    """A causal language model as a function of token ids. Not thread-safe."""

    def __init__(self, model) -> None:
        self.model = model
        self.head = model.get_output_embeddings()
        self.decoder = model.get_decoder()
        self.device = model.get_input_embeddings().weight.device
        self.vocab_size = self.head.weight.shape[0]
        kind = "cpu" if self.device.type == "cpu" else "gpu"
        self._rows = max(16, _CHUNK_BYTES[kind] // (4 * self.vocab_size))
        self._plain_head = True
        with torch.inference_mode():
            self._plain_head = self._probe_head()
            self.shares_prefixes = self._probe_prefix()

    @torch.inference_mode()
    def nll(self, ids: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor, prefix: Prefix | None = None):
        """-log p of each target, fp32 [n], on the model's device.

        ids: int64 [batch, length], right-padded with any valid id, without the prefix's tokens.
        positions: int64 [n], places in the flattened [batch * length] whose output predicts `targets` [n].
        """
        options = {"past_key_values": prefix.cache(len(ids)), "use_cache": True} if prefix else {"use_cache": False}
        if self._plain_head:
            hidden = self.decoder(input_ids=ids, **options).last_hidden_state
            wanted = hidden.reshape(-1, hidden.shape[-1])[positions]
            del hidden, options
            logits = (self.head(part) for part in wanted.split(self._rows))
        else:
            with _gathered_before(self.head, positions):
                whole = self.model(input_ids=ids, **options).logits
            logits = iter(whole.reshape(-1, whole.shape[-1]).split(self._rows))
        return torch.cat([_nll(part, goal) for part, goal in zip(logits, targets.split(self._rows), strict=True)])

    @torch.inference_mode()
    def prefix(self, ids: list[int]) -> Prefix:
        """Compute the keys and values of a common beginning."""
        tokens = torch.tensor([ids], device=self.device)
        cache = self.decoder(input_ids=tokens, use_cache=True).past_key_values
        return Prefix(len(ids), [(layer.keys, layer.values) for layer in cache.layers])

    def _probe_head(self) -> bool:
        """True if logits are the output layer of the last hidden state and nothing more (no soft cap, no scale)."""
        ids = torch.arange(8, device=self.device).remainder(self.vocab_size)[None]
        whole = self.model(input_ids=ids, use_cache=False).logits.float()
        ours = self.head(self.decoder(input_ids=ids, use_cache=False).last_hidden_state).float()
        return _close(ours, whole)

    def _probe_prefix(self) -> bool:
        """True if the model continues from cached keys and values as if it had seen all tokens at once."""
        ids = torch.arange(12, device=self.device).remainder(self.vocab_size)[None]
        cache = self.decoder(input_ids=ids[:, :6], use_cache=True).past_key_values
        # Sliding windows, recurrent states and the like keep something else: they go without shared prefixes.
        if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return False
        whole = self.decoder(input_ids=ids, use_cache=False).last_hidden_state[:, 6:]
        cache = self.prefix(ids[0, :6].tolist()).cache(1)
        ours = self.decoder(input_ids=ids[:, 6:], past_key_values=cache, use_cache=True).last_hidden_state
        return _close(ours.float(), whole.float())


def load_tokenizer(path: Path):
    """The student's tokenizer. Raises UserError if it cannot be loaded without running code from the checkpoint."""
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"the tokenizer in {path} cannot be loaded: {error}", "save the tokenizer again") from error


def load_model(path: Path, dtype: torch.dtype, device: str) -> Forward:
    """Load a checkpoint for scoring. `device` "auto" spreads it over all GPUs (`device_map`)."""
    hf_logging.disable_progress_bar()  # a bar of its own would tear the run's
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            device_map=device if device != "cpu" else None,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"the model in {path} cannot be loaded: {error}", "check that it is a causal language model, saved whole"
        ) from error
    model.eval().requires_grad_(False)
    return Forward(model)


def _nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = logits.float()
    return logits.logsumexp(-1) - logits.gather(-1, targets.to(logits.device)[:, None])[:, 0]


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= _PROBE_TOLERANCE * b.abs().max())


def _gathered_before(layer: torch.nn.Module, positions: torch.Tensor) -> AbstractContextManager:
    """Within the block the layer sees only these flattened positions, as a batch of one."""

    def gather(_module, args):
        return (args[0].reshape(-1, args[0].shape[-1])[positions][None], *args[1:])

    return layer.register_forward_pre_hook(gather)
