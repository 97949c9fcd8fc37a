"""A loaded student (any `AutoModelForCausalLM`): token ids in, negative log-likelihoods of chosen tokens out.

Batches are padded on the right without a mask: a causal model never looks to the right, so padding does not change a
score, and attention keeps its fast path. Only positions that predict a scored token go through the output layer, in
chunks, so that memory does not grow with vocabulary x length. Log-softmax is in fp32 in every precision.

Whether these ways are correct for a student is measured in `proof.py`, which returns the allowed ones as `Ways`.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_CHUNK_BYTES = 1 << 30
# Rows of the output layer per block, so that a block and its logits stay in a CPU's cache while they are used.
_VOCABULARY_BLOCK = 4096


@dataclass(frozen=True)
class Ways:
    """How losses may be computed for a student. The defaults are correct for any model that predicts the next token.

    `output`: where logits come from. `head`: the output layer applied to the decoder's last hidden state. `gathered`:
    the whole model, with only the needed positions passed to its output layer. `whole`: the whole model. `batches`:
    several sequences at a time, padded on the right. `prefixes`: a common prefix is computed once. `threads`: several
    threads may call the model at once.
    """

    output: Literal["head", "gathered", "whole"] = "whole"
    batches: bool = False
    prefixes: bool = False
    threads: bool = False


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a prefix that many sequences share: [1, heads, length, dim] per layer."""

    length: int
    layers: list[tuple[torch.Tensor, torch.Tensor]]

    def cache(self, batch: int) -> DynamicCache:
        """A cache for `batch` sequences that begin with the prefix, without copying it."""
        shape = (batch, -1, -1, -1)
        return DynamicCache(ddp_cache_data=[(k.expand(shape), v.expand(shape)) for k, v in self.layers])


class Forward:
    """A causal language model as a function of token ids. `concurrent`: `nll` may run in several threads at once."""

    def __init__(self, model, ways: Ways) -> None:
        self.model = model
        self.ways = ways
        embeddings = model.get_input_embeddings()
        self.head = model.get_output_embeddings()
        self.device = embeddings.weight.device
        rows = [layer.weight.shape[0] for layer in (embeddings, self.head) if layer is not None]
        self.vocab_size = min(rows)
        self._rows = max(16, _CHUNK_BYTES // (4 * max(rows)))
        self._by_vocabulary = self.device.type == "cpu" and type(self.head) is torch.nn.Linear
        self.long_from = changes_from(model.config)
        self._remembers = any("dynamic" in rope.get("rope_type", "") for rope in _ropes(model.config))
        # A hook on the output layer, or rotary frequencies that depend on the length, allow one batch at a time only.
        self.concurrent = ways.threads and ways.output == "head" and not self.long_from
        self.shares_prefixes = ways.prefixes

    @property
    def decoder(self) -> Any:
        """The part of the model that turns tokens into hidden states."""
        return self.model.get_decoder()

    @torch.inference_mode()
    def nll(self, ids: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor, prefix: Prefix | None = None):
        """-log p of each target, fp32 [n], on the model's device.

        ids: int64 [batch, length], right-padded with any valid id, without the prefix's tokens.
        positions: int64 [n], places in the flattened [batch * length] whose output predicts `targets` [n].
        """
        if self._remembers and ids.shape[1] > self.long_from:
            # The model keeps the rotary frequencies of the longest sequence so far; a short sequence resets them.
            self.model(input_ids=ids[:1, :1], use_cache=False)
        options = {"past_key_values": prefix.cache(len(ids)), "use_cache": True} if prefix else {"use_cache": False}
        if self.ways.output == "head":
            hidden = self.decoder(input_ids=ids, **options).last_hidden_state
            # A model spread over several devices returns hidden states on the last one.
            wanted = hidden.reshape(-1, hidden.shape[-1])[positions.to(hidden.device)].to(self.head.weight.dtype)
            del hidden, options
            if self._by_vocabulary:
                return _nll_by_vocabulary(wanted, targets, self.head)
            logits = (self.head(part) for part in wanted.split(self._rows))
        elif self.ways.output == "gathered":
            with _gathered_before(self.head, positions):
                whole = self.model(input_ids=ids, **options).logits
            logits = iter(whole.reshape(-1, whole.shape[-1]).split(self._rows))
        else:
            whole = self.model(input_ids=ids, **options).logits
            whole = whole.reshape(-1, whole.shape[-1])
            logits = (whole[part.to(whole.device)] for part in positions.split(self._rows))
        return torch.cat([_nll(part, goal) for part, goal in zip(logits, targets.split(self._rows), strict=True)])

    @torch.inference_mode()
    def prefix(self, ids: list[int]) -> Prefix:
        """Compute the keys and values of a common prefix. Only for students that `can_share`."""
        tokens = torch.tensor([ids], device=self.device)
        cache = self._part()(input_ids=tokens, use_cache=True).past_key_values
        return Prefix(len(ids), [(layer.keys, layer.values) for layer in cache.layers])

    @torch.inference_mode()
    def can_share(self) -> bool:
        """Whether the model's cache of a prefix holds nothing but keys and values.

        Models with sliding windows or recurrent states keep other things and do without shared prefixes.
        """
        cache = getattr(self._part()(input_ids=self._two(), use_cache=True), "past_key_values", None)
        plain = isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)
        return plain and not self.long_from

    @torch.inference_mode()
    def is_decoder_and_head(self) -> bool:
        """Whether the model is a decoder with an output layer on top, judging by shapes."""
        if self.head is None or self.decoder is self.model:
            return False
        hidden = getattr(self.decoder(input_ids=self._two(), use_cache=False), "last_hidden_state", None)
        return hidden is not None and hidden.shape[-1] == self.head.weight.shape[-1]

    def _part(self) -> Any:
        return self.decoder if self.ways.output == "head" else self.model

    def _two(self) -> torch.Tensor:
        return torch.zeros((1, 2), dtype=torch.long, device=self.device)


def changes_from(config) -> int:
    """The length in tokens above which a model changes the rotary embeddings of all positions; 0 if it never does.

    Such a model (rope types `longrope` and `dynamic`) treats all sequences of a batch as long if one of them is.
    """
    most = getattr(config.get_text_config(), "max_position_embeddings", None) or 1
    changing = [rope for rope in _ropes(config) if rope.get("rope_type") in ("dynamic", "longrope")]
    return min((rope.get("original_max_position_embeddings") or most for rope in changing), default=0)


def _ropes(config) -> list[dict]:
    """Settings of the rotary embeddings: one for all layers, or one for each kind of layer."""
    found = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [found, *(value for value in found.values() if isinstance(value, dict))]


def _nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = logits.float()
    return logits.logsumexp(-1) - logits.gather(-1, targets.to(logits.device)[:, None])[:, 0]


def _nll_by_vocabulary(hidden: torch.Tensor, targets: torch.Tensor, head: torch.nn.Linear) -> torch.Tensor:
    """Like `_nll`, one block of the vocabulary at a time, so that logits stay in the CPU's cache (a quarter faster)."""
    rows = head.weight[targets]
    chosen = (hidden.float() * rows.float()).sum(-1)
    if head.bias is not None:
        chosen += head.bias[targets].float()
    # Rounded like the model's own logits in low precision.
    chosen = chosen.to(head.weight.dtype).float()
    blocks = head.weight.split(_VOCABULARY_BLOCK)
    biases = head.bias.split(_VOCABULARY_BLOCK) if head.bias is not None else [None] * len(blocks)
    sums = [_logsumexp_(F.linear(hidden, w, b).float()) for w, b in zip(blocks, biases, strict=True)]
    return torch.stack(sums).logsumexp(0) - chosen


def _logsumexp_(logits: torch.Tensor) -> torch.Tensor:
    """logsumexp over the last dimension, computed in place, which saves memory traffic. Overwrites `logits`."""
    # Without the clamp a block of -inf only would give nan.
    highest = logits.amax(-1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
    return logits.sub_(highest).exp_().sum(-1).log_().add_(highest[:, 0])


def _gathered_before(layer: torch.nn.Module, positions: torch.Tensor) -> AbstractContextManager:
    """Within the block, pass only these flattened positions to the layer, as a batch of one."""

    def gather(_module, args):
        return (args[0].reshape(-1, args[0].shape[-1])[positions.to(args[0].device)][None], *args[1:])

    return layer.register_forward_pre_hook(gather)
