"""The student loaded: token ids in, negative log-likelihoods of chosen tokens out. Any `AutoModelForCausalLM`.

Right padding without a mask: a causal model never looks to the right, so padding cannot change a score, and attention
keeps its fast path. Only positions that predict a scored token go through the output layer, a chunk at a time, so
memory does not grow with vocabulary x length. Log-softmax is in fp32 whatever the model's precision.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.utils import logging as hf_logging

from srt_assets.core.student.loading import load_whole

_CHUNK_BYTES = 1 << 30
# On a CPU a block of the output layer and its logits should stay in the cache while they are used.
_VOCABULARY_BLOCK = 4096
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
    """A causal language model as a function of token ids. `concurrent`: `nll` may run in several threads at once."""

    def __init__(self, model) -> None:
        self.model = model
        self.head = model.get_output_embeddings()
        self.decoder = model.get_decoder()
        self.device = model.get_input_embeddings().weight.device
        self.vocab_size = self.head.weight.shape[0]
        self._rows = max(16, _CHUNK_BYTES // (4 * self.vocab_size))
        self._by_vocabulary = self.device.type == "cpu" and type(self.head) is torch.nn.Linear
        with torch.inference_mode():
            self._plain_head = self._probe_head()
            self.shares_prefixes = self._probe_prefix()
        # A hook on the output layer, or frequencies that the model changes as it goes, belong to one batch at a time.
        rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
        self.concurrent = self._plain_head and rope.get("rope_type") not in ("dynamic", "longrope")
        # Such a model reads every sequence of a batch as a long one if one is longer than this; 0: no such model.
        longrope = rope.get("rope_type") == "longrope"
        self.long_from = rope.get("original_max_position_embeddings", 0) if longrope else 0
        self.shares_prefixes &= not longrope

    @torch.inference_mode()
    def nll(self, ids: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor, prefix: Prefix | None = None):
        """-log p of each target, fp32 [n], on the model's device.

        ids: int64 [batch, length], right-padded with any valid id, without the prefix's tokens.
        positions: int64 [n], places in the flattened [batch * length] whose output predicts `targets` [n].
        """
        options = {"past_key_values": prefix.cache(len(ids)), "use_cache": True} if prefix else {"use_cache": False}
        if self._plain_head:
            hidden = self.decoder(input_ids=ids, **options).last_hidden_state
            # Of a model spread over several devices the last one speaks.
            wanted = hidden.reshape(-1, hidden.shape[-1])[positions.to(hidden.device)]
            del hidden, options
            if self._by_vocabulary:
                return _nll_by_vocabulary(wanted, targets, self.head)
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


def load_model(path: Path, dtype: torch.dtype, device: str) -> Forward:
    """Load a checkpoint for scoring. `device` "auto" spreads it over all GPUs (`device_map`)."""
    hf_logging.disable_progress_bar()  # a bar of its own would tear the run's
    model = load_whole(path, dtype=dtype, device_map=device if device != "cpu" else None)
    model.eval().requires_grad_(False)
    return Forward(model)


def _nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = logits.float()
    return logits.logsumexp(-1) - logits.gather(-1, targets.to(logits.device)[:, None])[:, 0]


def _nll_by_vocabulary(hidden: torch.Tensor, targets: torch.Tensor, head: torch.nn.Linear) -> torch.Tensor:
    """The same, a block of the vocabulary at a time: logits are used while they are in the cache (a quarter faster)."""
    rows = head.weight[targets]
    chosen = (hidden.float() * rows.float()).sum(-1)
    if head.bias is not None:
        chosen += head.bias[targets].float()
    blocks = head.weight.split(_VOCABULARY_BLOCK)
    biases = head.bias.split(_VOCABULARY_BLOCK) if head.bias is not None else [None] * len(blocks)
    sums = [_logsumexp_(F.linear(hidden, w, b).float()) for w, b in zip(blocks, biases, strict=True)]
    return torch.stack(sums).logsumexp(0) - chosen


def _logsumexp_(logits: torch.Tensor) -> torch.Tensor:
    """Over the last dimension, in the memory of `logits`: what is written back need not be fetched twice."""
    # A block that is -inf throughout would give nan otherwise.
    highest = logits.amax(-1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
    return logits.sub_(highest).exp_().sum(-1).log_().add_(highest[:, 0])


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= _PROBE_TOLERANCE * b.abs().max())


def _gathered_before(layer: torch.nn.Module, positions: torch.Tensor) -> AbstractContextManager:
    """Within the block the layer sees only these flattened positions, as a batch of one."""

    def gather(_module, args):
        return (args[0].reshape(-1, args[0].shape[-1])[positions.to(args[0].device)][None], *args[1:])

    return layer.register_forward_pre_hook(gather)
