"""Students of all kinds: registered, proved, scored and trained on as any other; docs/architectures.md says how.

`make architectures`; with UPDATE_DOCS=1 in the environment it writes the page. Asserted of every kind: its scores are
its own losses, one sequence at a time, or it is refused with a sentence that names it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import kinds
import numpy as np
import pytest
import torch
import transformers
from student_lake import settings_for

from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.scoring.chunks import ChunkScorer, Item, Spec
from srt_assets.core.scoring.encoding import Pass, Texts
from srt_assets.core.scoring.proof import prove
from srt_assets.core.students import checkpoints
from srt_assets.core.students.loading import load_whole
from srt_assets.core.tables import PASSES
from srt_assets.core.training.packed import Example, mean_loss, packing_is_exact

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
TEXTS = [
    Texts("Name three fruits.", "They must be red.", "Cherries, strawberries and red apples are fruits."),
    Texts("Say it in one word.", "", "Rain."),
    Texts("Why is the path slippery?", "", "Clay swells until no water runs between its particles any more. " * 3),
]
EXAMPLES = [Example(str(n), np.random.default_rng(n).integers(5, 300, 20 + n).astype(np.int32), 6) for n in range(3)]
SAME = 1e-4


@dataclass(frozen=True)
class Outcome:
    """How a kind of student is asked, and how far its scores are from its own losses (nats a token); or `refused`."""

    kind: str
    architecture: str
    path: str = ""
    beginnings: bool = False
    packed: bool = False
    off: float = 0.0
    train_off: float = 0.0
    refused: str = ""

    @property
    def row(self) -> str:
        if self.refused:
            return f"| {self.kind} | `{self.architecture}` | {self.refused} |"
        shared, packed = "shared" if self.beginnings else "", "packed" if self.packed else "one record a row"
        return f"| {self.kind} | `{self.architecture}` | {self.path} | {shared} | {packed} |"


@cache
def outcome(kind: str) -> Outcome:
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        source, lake = kinds.save(kind, Path(folder) / kind), Lake(Path(folder) / "home")
        config = transformers.AutoConfig.from_pretrained(source)
        architecture = config.architectures[0]
        try:
            info = checkpoints.add(settings_for(), lake, str(source), kind)
            spec = Spec(info.path, "vicuna", "aligned", 512, "float32", 0, 2, lake.home, info.fingerprint)
            scorer = ChunkScorer(spec, "cpu")
        except UserError as error:
            return Outcome(kind, architecture, refused=error.message.replace(str(source), kind))
        items = [Item(str(n), str(n), texts) for n, texts in enumerate(TEXTS)]
        encoded = scorer.encode(items)
        rows = scorer.score(items, encoded).rows
        model = load_whole(source, dtype=torch.float32).eval()
        off = 0.0
        for row, passes in zip(rows, encoded, strict=True):
            for name in PASSES:
                one = passes[name]
                if isinstance(one, Pass):
                    off = max(off, abs(row[f"sum_nll_{name}"] / one.n_scored - own_loss(model, one.ids, one.start)))
        trained = mean_loss(model, EXAMPLES, 1)
        n_targets = sum(e.n_targets for e in EXAMPLES)
        own = sum(own_loss(model, e.ids, e.start) * e.n_targets for e in EXAMPLES) / n_targets
        return Outcome(
            kind,
            architecture,
            scorer.proof.path,
            scorer.proof.ways.prefixes,
            packing_is_exact(model, EXAMPLES, "fp32"),
            off,
            abs(trained - own),
        )


def own_loss(model, ids: np.ndarray, start: int) -> float:
    """Mean loss of ids[start:] as the whole model gives it to one sequence alone."""
    whole = torch.from_numpy(ids.astype(np.int64))[None]
    with torch.no_grad():
        log_p = model(input_ids=whole, use_cache=False).logits[0].float().log_softmax(-1)
    return -float(log_p[range(start - 1, len(ids) - 1), whole[0, start:]].mean())


@pytest.mark.parametrize("kind", kinds.CAUSAL)
def test_scores_are_the_students_own_losses(kind: str) -> None:
    found = outcome(kind)
    assert not found.refused and found.off <= SAME and found.train_off <= SAME


# The first computes in fp32 only; the second is moved by how much follows, not by what, which rounding could be, too.
NOT_IN_BF16 = {"xlstm", "prophetnet"}


@pytest.mark.parametrize("kind", sorted({*kinds.CAUSAL, *kinds.LOOKS_AHEAD} - NOT_IN_BF16))
def test_low_precision_tells_the_same_ones_apart(kind: str) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kinds.config_of(kind)).eval().to(torch.bfloat16)
    assert bool(prove(model).refused) == (kind in kinds.LOOKS_AHEAD)


REFUSED = {
    **dict.fromkeys(kinds.LOOKS_AHEAD, "the student {} cannot be scored: it is not causal: what follows a token"),
    **dict.fromkeys(kinds.RANDOM, "the student {} cannot be scored: it gives other losses each time"),
    **dict.fromkeys(kinds.ENCODER_DECODER, "{} is an encoder-decoder ("),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_likelihood_is_refused_in_a_sentence(kind: str) -> None:
    assert outcome(kind).refused.startswith(REFUSED[kind].format(kind))


def page() -> str:
    everything = [outcome(kind) for kind in (*kinds.CAUSAL, *REFUSED)]
    scored = [found for found in everything if not found.refused]
    fast = sum(found.path == "fast" for found in scored)
    lines = [
        "# Students of all kinds",
        "",
        "Made by `UPDATE_DOCS=1 make architectures` from tiny random checkpoints in fp32 on a CPU, with transformers "
        f"{transformers.__version__}: {len(scored)} of {len(everything)} architectures",
        f"are scored, {fast} of them the fast way, the others by their whole forward pass; all with their own losses "
        f"to {SAME:g} nats a token. [Scoring](scoring.md)",
        "says what is measured. It is measured on each student, so one that is not in this list is no worse off.",
        "",
        "- *scored*: `fast` is the decoder, its output layer on the scored positions alone, in padded batches.",
        "- *beginnings*: keys and values of the template's beginning are computed once for all records.",
        "- *trained*: `packed` records share a row of tokens; an architecture that would mix them up gets one a row.",
        "",
        "| architecture | class | scored | beginnings | trained |",
        "|---|---|---|---|---|",
        *(found.row for found in sorted(scored, key=lambda f: f.kind)),
        "",
        "| refused | class | why |",
        "|---|---|---|",
        *(found.row for found in sorted(everything, key=lambda f: f.kind) if found.refused),
    ]
    return "\n".join(lines) + "\n"


def test_the_page_of_architectures_is_what_was_found() -> None:
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page(), "run UPDATE_DOCS=1 make architectures"
