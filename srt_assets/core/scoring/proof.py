"""Tests on a student which of the fast ways of `model.py` give correct losses, before it scores anything.

The whole model on a single sequence is correct by definition. These are compared with it, as mean |difference of log p|
over at least `TARGETS` tokens of ordinary text and of random ids: tokens appended to a sequence, the output layer
without the rest of the model, right padding in a batch, a shared prefix. A way that gives other losses is not used. A
student that looks at later tokens is refused, because its losses are no likelihood.

The results are stored by `proofs.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from srt_assets.core.scoring.devices import is_memory_shortage
from srt_assets.core.scoring.model import Forward, Prefix, Ways, changes_from

# Part of every stored proof. Change it when the same student could get another result.
VERSION = "1"
TARGETS = 256
# Limits in nats per token. In low precision rounding alone changes a loss. There a way may change it by at most `TIMES`
# the change of a padded batch with a mask in the same model, and by at most `LOW`.
EXACT = 1e-4
LOW = 2e-2
TIMES = 2.0
# Tokens of the longest of four sequences, of the part that is read again without its end, and of the shared prefix.
_LENGTH, _CUT, _SHARED = 92, 65, 16
TEXT = """\
When the first rain falls on a clay path, the water stays on top. The particles of clay are flat and tiny, and they
swell until nothing more can run between them; that is why the path is slippery for hours after the sky has cleared.
1. Wait until the surface is dull. 2. Walk at the edge, where grass holds the soil. 3. Do not run!

def mean(values: list[float]) -> float:
    # An empty list has no mean.
    if not values:
        raise ValueError("nothing to take the mean of")
    return sum(values) / len(values)

"Is it far?" she asked. It was 3.5 km, or about 40 minutes, and the bus (line 12) had left at 17:05. Der nächste fährt
erst morgen früh um sechs, sagte der Fahrer, aber zu Fuß ist man schneller. 雨が降ると道はすべりやすくなります。
Il faut donc partir avant la nuit. The total cost was $1,204.99; see https://example.org/rain?id=7 for a table of all.
"""


@dataclass(frozen=True)
class Proof:
    """The result of the tests. `refused`: why the student cannot be scored, '' if it can. `ways`: the allowed ways.
    `measured`: difference by test (None if the way is impossible), and the limit (nats per token).
    """

    ways: Ways = field(default_factory=Ways)
    refused: str = ""
    measured: dict[str, float | None] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """How the student is scored, in words; `fast` if all fast ways are allowed."""
        if self.refused:
            return f"refused: it {self.refused}"
        output = "fast" if self.ways.output == "head" else "whole forward pass"
        return output if self.ways.batches else f"{output}, one sequence at a time"

    @property
    def why(self) -> str:
        """Why the student is not scored the fast way, in words; '' if it is."""
        found = []
        if self.ways.output != "head":
            found.append("its output layer on the last hidden state gives other losses than the model")
        if not self.ways.batches:
            found.append("padded in a batch it gives other losses than alone")
        return " and ".join(found)


def prove(model, text: Sequence[int] = (), avoid: Sequence[int] = ()) -> Proof:
    """Test a loaded model. `text`: token ids of ordinary text, without BOS; `avoid`: ids of special tokens.

    A model that fails on a plain sequence of tokens is refused, whatever it raises; a lack of memory is raised.
    """
    try:
        return _Trial(model, text, avoid).run()
    except Exception as error:
        if is_memory_shortage(error):
            raise
        said = str(error).strip().splitlines() or [""]
        return Proof(refused=f"cannot read a sequence of tokens ({type(error).__name__}: {said[0][:200]})")


class _Trial:
    """The test of one model: its sequences, and their true losses (whole model, one sequence at a time)."""

    def __init__(self, model, text: Sequence[int], avoid: Sequence[int]) -> None:
        self.model = model
        self.alone = Forward(model, Ways())
        self.sequences = _sequences(model, self.alone.vocab_size, text, avoid)
        self.shared, self.cut = (_share(part, len(self.sequences[0])) for part in (_SHARED, _CUT))
        self.low = next(model.parameters()).dtype != torch.float32
        self.limit = self.rounding = EXACT
        self.measured: dict[str, float | None] = {}

    def run(self) -> Proof:
        self.truth = [self.losses([one], self.alone) for one in self.sequences[:1]]
        before = _held(self.model)
        self.truth += [self.losses([one], self.alone) for one in self.sequences[1:]]
        stateless = _same(before, _held(self.model))
        if not any(np.isfinite(losses).any() for losses in self.truth):
            # In low precision this may be an overflow: the scores get the status not_finite and are repeated in fp32.
            return Proof() if self.low else Proof(refused="gives no number as a loss, whatever it reads")
        if self.low:
            own = self.tried("own", lambda: self.measure("own", self.truth, self.masked()))
            self.limit, self.rounding = (min(LOW, max(times * own, EXACT)) for times in (TIMES, 1.0))
        self.measured["limit"] = self.limit
        if why := self.unfit():
            return Proof(refused=why, measured=self.measured)
        # Usually all ways pass, so try them together first.
        ways = Ways("head", batches=True)
        if not self.fits("batch", [self.sequences], ways):
            ways = self.batches(self.output())
        ways = replace(self.prefixes(ways), threads=stateless and ways.batches and ways.output == "head")
        return Proof(ways, measured=self.measured)

    # -- the tests

    def unfit(self) -> str:
        """Why the student is refused if appended tokens change earlier logits; '' if they do not."""
        if self.low:
            # Compare with another end of the same length, so that both sequences are rounded alike.
            ends = [self.sequences[i - 1][self.cut :] for i in range(len(self.sequences))]
            other = [
                np.concatenate([one[: self.cut], np.resize(end, len(one) - self.cut)])
                for one, end in zip(self.sequences, ends, strict=True)
            ]
            found = [self.losses([one], self.alone)[: self.cut - 1] for one in other]
        else:
            found = [self.losses([one[: self.cut]], self.alone) for one in self.sequences]
        if self.measure("causality", [losses[: self.cut - 1] for losses in self.truth], found) <= self.rounding:
            return ""
        again = self.losses([self.sequences[0]], self.alone)
        if self.measure("repeat", self.truth[:1], [again]) > self.limit:
            return "gives other losses each time it reads the same text"
        return "is not causal: what follows a token changes how likely it finds that token"

    def output(self) -> Ways:
        """The cheapest output way that gives the model's own losses."""
        for ways in (Ways("head"), Ways("gathered")):
            if self.fits(ways.output, [[one] for one in self.sequences], ways):
                return ways
        return Ways()

    def batches(self, ways: Ways) -> Ways:
        together = replace(ways, batches=True)
        return together if self.fits("batch", [self.sequences], together) else ways

    def prefixes(self, ways: Ways) -> Ways:
        sharing = replace(ways, prefixes=True)
        groups = [self.sequences] if ways.batches else [[one] for one in self.sequences]
        return sharing if self.fits("prefix", groups, sharing) else ways

    # -- measuring

    def fits(self, name: str, groups: list[list[np.ndarray]], ways: Ways) -> bool:
        """Whether the losses of these groups of sequences equal the model's own."""
        return self.tried(name, lambda: self.difference(name, groups, ways)) <= self.limit

    def difference(self, name: str, groups: list[list[np.ndarray]], ways: Ways) -> float:
        forward = Forward(self.model, ways)
        if (ways.output == "head" and not forward.is_decoder_and_head()) or (ways.prefixes and not forward.can_share()):
            return self.cannot(name)
        skip = self.shared if ways.prefixes else 0
        prefix = forward.prefix(self.sequences[0][:skip].tolist()) if skip else None
        found = np.concatenate([self.losses(group, forward, prefix) for group in groups])
        truth = np.concatenate([losses[skip:] for losses in self.truth])
        return self.measure(name, [truth], [found])

    def tried(self, name: str, measure: Callable[[], float]) -> float:
        """The measured difference; inf if the model fails in this way."""
        try:
            return measure()
        except Exception as error:
            # An architecture's code may raise anything; in each case this way does not give the model's losses.
            if is_memory_shortage(error):
                raise
            return self.cannot(name)

    def cannot(self, name: str) -> float:
        self.measured[name] = None
        return math.inf

    def losses(self, group: list[np.ndarray], forward: Forward, prefix: Prefix | None = None) -> np.ndarray:
        """-log p of every token but the first (and those of the prefix), in the order of the sequences."""
        skip = prefix.length if prefix else 0
        members = [one[skip:-1] for one in group]
        width = max(map(len, members))
        ids = np.zeros((len(members), width), dtype=np.int64)
        for row, one in zip(ids, members, strict=True):
            row[: len(one)] = one
        positions = np.concatenate([np.arange(len(one)) + r * width for r, one in enumerate(members)])
        targets = np.concatenate([one[skip + 1 :] for one in group]).astype(np.int64)
        at, goals = torch.from_numpy(positions).to(forward.device), torch.from_numpy(targets).to(forward.device)
        found = forward.nll(torch.from_numpy(ids).to(forward.device), at, goals, prefix)
        return found.cpu().numpy().astype(np.float64)

    @torch.inference_mode()
    def masked(self) -> list[np.ndarray]:
        """Losses from one padded batch with a mask, the usual way, which differs from the truth by rounding only."""
        width = max(map(len, self.sequences))
        ids = torch.zeros((len(self.sequences), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(self.sequences):
            ids[row, : len(one)] = torch.from_numpy(one.astype(np.int64))
            mask[row, : len(one)] = 1
        device = self.alone.device
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits.cpu()
        log_p = logits.float().log_softmax(-1)
        found = []
        for row, one in enumerate(self.sequences):
            targets = torch.from_numpy(one[1:].astype(np.int64))[:, None]
            found.append(-log_p[row, : len(one) - 1].gather(-1, targets)[:, 0].numpy().astype(np.float64))
        return found

    def measure(self, name: str, truth: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
        """Mean |difference|; inf if only one of two losses is finite."""
        a, b = np.concatenate(truth), np.concatenate(found)
        both = np.isfinite(a) & np.isfinite(b)
        difference = np.where(both, np.abs(np.where(both, a, 0) - np.where(both, b, 0)), np.inf)
        difference[~np.isfinite(a) & ~np.isfinite(b)] = 0.0
        mean = float(difference.mean())
        self.measured[name] = mean if math.isfinite(mean) else None
        return mean


def _held(model) -> list[tuple[Any, int]]:
    """The attributes and buffers of the model's modules, and how often each tensor was written to."""
    held = [value for part in model.modules() for value in (*vars(part).values(), *part._buffers.values())]
    # The values themselves, not their ids, because the id of a deleted object may be used again.
    return [(v, v._version if isinstance(v, torch.Tensor) and not v.is_inference() else 0) for v in held]


def _same(before: list[tuple[Any, int]], after: list[tuple[Any, int]]) -> bool:
    return len(before) == len(after) and all(a is b and m == n for (a, m), (b, n) in zip(before, after, strict=True))


def _sequences(model, vocabulary: int, text: Sequence[int], avoid: Sequence[int]) -> list[np.ndarray]:
    """Sequences of four lengths with one prefix; half continue with text, half with random ids of the vocabulary."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (positions, changes_from(model.config)) if limit and limit > 0]
    longest = max(8, min([_LENGTH, *limits]))
    number = 2 * -(-TARGETS // (2 * (_share(_CUT, longest) - 1)))
    drawn = np.random.default_rng(0)
    usable = np.setdiff1d(np.arange(vocabulary), np.asarray(avoid, dtype=np.int64))
    ordinary = np.asarray([i for i in text if i < vocabulary], dtype=np.int64)
    if not len(ordinary):
        ordinary = drawn.choice(usable, longest)
    shared = _share(_SHARED, longest)
    # A tokenizer with very long tokens may give too few ids for the text.
    ordinary = np.resize(ordinary, max(len(ordinary), shared))
    found, place = [], shared
    for i in range(number):
        rest = longest - (i % 4) * (longest // 15) - shared
        more = drawn.choice(usable, rest) if i % 2 else np.resize(np.roll(ordinary, -place), rest)
        place += 0 if i % 2 else rest
        found.append(np.concatenate([ordinary[:shared], more]))
    return found


def _share(part: int, longest: int) -> int:
    """`part` scaled from `_LENGTH` to `longest`."""
    return longest * part // _LENGTH
