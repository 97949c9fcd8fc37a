"""Scores a chunk of candidates on one device: encodes, computes each distinct pass once, returns one row each."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import torch

from srt_assets.core.errors import StageError
from srt_assets.core.scoring import chat, devices
from srt_assets.core.scoring.encoding import OUT_OF_VOCABULARY, Encoded, Encoder, Pass, Texts
from srt_assets.core.scoring.proof import Proof
from srt_assets.core.scoring.proofs import Place
from srt_assets.core.scoring.ready import load_model
from srt_assets.core.scoring.scorer import Scorer, Tick
from srt_assets.core.scoring.store import OUT_OF_MEMORY
from srt_assets.core.students.loading import load_tokenizer
from srt_assets.core.tables import PASSES

# For a shorter prefix, passing its keys and values around costs more than it saves. Tokens.
_WORTH_SHARING = 8


@dataclass(frozen=True)
class Spec:
    """The parameters of a worker, the same for all workers of a run. `dtype`: its torch name. `token_budget` 0: chosen
    for the device. `cores`: CPU cores for each worker on the CPU. `home`, `fingerprint`: where the student's proof is
    kept; without a home it is not kept.
    """

    path: Path
    template: str
    protocol: str
    max_length: int
    dtype: str
    token_budget: int
    cores: int
    home: Path | None = None
    fingerprint: str = ""


@dataclass(frozen=True)
class Item:
    """A candidate to score: its sample, its texts and their content key."""

    sample_id: str
    content_key: str
    texts: Texts


@dataclass
class Scored:
    """Rows of a finished chunk (columns of `student_scores`, by content key), its samples, characters and seconds.

    `counts`: candidates; passes computed, passes_shared (not computed, because equal to another), tokens in the
    computed passes; candidates truncated, failed, out_of_memory. `proof`: which fast ways were used.
    """

    rows: list[dict]
    samples: list[str]
    characters: int
    seconds: float
    proof: Proof = field(default_factory=Proof)
    counts: dict[str, int] = field(default_factory=dict)


class ChunkScorer:
    """Loads the student onto a device and scores chunks with it."""

    def __init__(self, spec: Spec, device: str) -> None:
        # Tokenizing runs in a thread beside the model; the tokenizers would otherwise turn parallelism off after a
        # fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        tokenizer = load_tokenizer(spec.path)
        self.encoder = Encoder(tokenizer, spec.template, spec.protocol, spec.max_length)
        if self.encoder.chat and spec.home:
            chat.check(self.encoder.chat, spec.path, spec.fingerprint)
        place = Place(spec.home, spec.fingerprint, device, spec.dtype) if spec.home else None
        try:
            forward, self.proof = load_model(spec.path, getattr(torch, spec.dtype), device, tokenizer, place)
            self.vocab_size = forward.vocab_size
            budget = spec.token_budget or devices.default_token_budget(forward.device.type)
            self.scorer = Scorer(forward, budget, shared_beginnings(self.encoder), spec.cores)
        except RuntimeError as error:
            if not devices.is_memory_shortage(error):
                raise
            raise StageError(
                f"the student does not fit into the memory that {device} has left: {str(error).splitlines()[0]}",
                "free some (does another process use it?), or name other devices in student.devices",
            ) from error
        told = ("template", "protocol", "max_length", "dtype")
        self.facts = {name: getattr(spec, name) for name in told} | {"first_token": self.encoder.first_token}

    def encode(self, chunk: Sequence[Item]) -> list[Encoded]:
        """Token ids of every pass. Uses no device, so it may run in another thread."""
        encoded = self.encoder.encode([item.texts for item in chunk])
        for passes in encoded:
            for name, one in passes.items():
                # Such an id would crash the GPU's context, and with it the scoring of all other records.
                if isinstance(one, Pass) and int(one.ids.max()) >= self.vocab_size:
                    passes[name] = OUT_OF_VOCABULARY
        return encoded

    def score(self, chunk: Sequence[Item], encoded: Sequence[Encoded], tick: Tick = lambda tokens: None) -> Scored:
        """Compute the passes that `encode` returned for this chunk."""
        started = time.perf_counter()
        asked = [one for passes in encoded for one in passes.values() if isinstance(one, Pass)]
        distinct = {one.key: one for one in asked}
        sums = dict(zip(distinct, self.scorer.score(list(distinct.values()), tick), strict=True))
        rows = []
        for item, passes in zip(chunk, encoded, strict=True):
            row: dict = {"content_key": item.content_key, **self.facts}
            for name in PASSES:
                one = passes[name]
                total = sums[one.key] if isinstance(one, Pass) else one
                scored = isinstance(total, float)
                row[f"sum_nll_{name}"] = total if scored else None
                row[f"n_tokens_{name}"] = one.n_scored if scored and isinstance(one, Pass) else None
                row[f"truncated_{name}"] = one.truncated if isinstance(one, Pass) else None
                row[f"status_{name}"] = "ok" if scored else total
            rows.append(row)
        counts = {
            "candidates": len(rows),
            "passes": len(distinct),
            "passes_shared": len(asked) - len(distinct),
            "tokens": sum(len(one.ids) for one in distinct.values()),
            "truncated": sum(any(row[f"truncated_{p}"] for p in PASSES) for row in rows),
            "failed": sum(any(row[f"status_{p}"] != "ok" for p in PASSES) for row in rows),
            "out_of_memory": sum(any(row[f"status_{p}"] == OUT_OF_MEMORY for p in PASSES) for row in rows),
        }
        return Scored(
            rows,
            samples=list(dict.fromkeys(item.sample_id for item in chunk)),
            characters=sum(len(text) for item in chunk for text in item.texts),
            seconds=time.perf_counter() - started,
            proof=self.proof,
            counts=counts,
        )


def shared_beginnings(encoder: Encoder) -> list[tuple[int, ...]]:
    """Common prefixes (token ids) of the template's prompts: with input, without input, and of the r-IFD prompt."""
    found = set()
    for input in ("", "3 + 4"):
        one, other = encoder.encode([Texts("Name it", input, "Yes."), Texts("why? 7", input and "None", "(no)")])
        for name in ("response_given_prompt", "instruction_given_response"):
            a, b = one[name], other[name]
            if isinstance(a, Pass) and isinstance(b, Pass):
                side_by_side = zip(a.ids[: a.start - 1].tolist(), b.ids[: b.start - 1].tolist(), strict=False)
                common = tuple(x for x, _ in takewhile(lambda pair: pair[0] == pair[1], side_by_side))
                if len(common) >= _WORTH_SHARING:
                    found.add(common)
    return sorted(found)
