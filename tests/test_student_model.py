"""The engine on kinds of models, on shared beginnings, on memory shortage and on numbers that are none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import transformers as hf
from tiny_student import make_tiny_student, make_tiny_tokenizer

from srt_assets.core.errors import StageError
from srt_assets.core.scoring import chunks
from srt_assets.core.scoring.chunks import ChunkScorer, Item, Spec, shared_beginnings
from srt_assets.core.scoring.encoding import Encoder, Pass, Texts
from srt_assets.core.scoring.model import Forward
from srt_assets.core.scoring.proof import prove
from srt_assets.core.scoring.scorer import Scorer

torch.set_num_threads(1)
BASE = dict(
    vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
GPT2 = dict(vocab_size=500, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2)
MODELS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**BASE)),
    "gpt2_learned_positions": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "gemma2_soft_cap": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**BASE, head_dim=8, sliding_window=16, final_logit_softcapping=5.0)
    ),
    "mistral_sliding_window": lambda: hf.MistralForCausalLM(hf.MistralConfig(**BASE, sliding_window=16)),
    "granite_scaled_logits": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**BASE, logits_scaling=4.0)),
    "phi_output_bias": lambda: hf.PhiForCausalLM(hf.PhiConfig(**BASE)),
}
BEGINNING = tuple(range(100, 120))


@pytest.fixture(scope="module")
def passes() -> list[Pass]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(20):
        ids = [*(BEGINNING if i % 2 else ()), *rng.integers(5, 500, rng.integers(3, 60))]
        found.append(Pass(np.array(ids, dtype=np.int32), len(BEGINNING) + 1 if i % 2 else 1))
    return found


def proven(model) -> Forward:
    return Forward(model, prove(model).ways)


def naive(model, one: Pass) -> float:
    ids = torch.from_numpy(one.ids.astype(np.int64))[None]
    labels = ids.clone()
    labels[:, : one.start] = -100
    with torch.no_grad():
        return model(ids, labels=labels).loss.item()


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_any_causal_model_scores_as_its_own_loss_says(kind, cores, passes):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    sums = Scorer(proven(model), 128, [BEGINNING], cores).score(passes)
    assert torch.get_num_threads() == 1  # what the process had before
    for one, total in zip(passes, sums, strict=True):
        assert isinstance(total, float)
        assert total / one.n_scored == pytest.approx(naive(model, one), abs=1e-5)


def test_shared_beginnings_are_computed_once(passes):
    torch.manual_seed(0)
    model = MODELS["llama"]().eval()
    computed: list[int] = []
    Scorer(proven(model), 128, [BEGINNING]).score(passes, computed.append)
    assert sum(computed) == sum(len(p.ids) - 1 - (len(BEGINNING) if p.start > 1 else 0) for p in passes)


def test_the_templates_beginnings_are_found():
    encoder = Encoder(make_tiny_tokenizer(bos=True), "vicuna", "aligned", 2048)
    found = shared_beginnings(encoder)
    passes = encoder.encode([Texts("Whatever it is", "", "An answer.")])[0]
    for name in ("response_given_prompt", "instruction_given_response"):
        one = passes[name]
        assert any(tuple(one.ids[: len(p)].tolist()) == p and len(p) < one.start for p in found)


def test_a_lane_keeps_to_its_core():
    """Cores that share a batch spend most of their time waiting for each other once anything else runs beside them."""
    code = (
        "import os, torch; from srt_assets.core.scoring.scorer import lanes; torch.set_num_threads(2);"
        "x = torch.randn(512, 512); before = len(os.listdir('/proc/self/task'));\n"
        "with lanes(1, 1) as pool: pool.submit(torch.nn.functional.linear, x, x).result();"
        "print(len(os.listdir('/proc/self/task')) - before, torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2"]


class Forgetful:
    """A device that holds only so many tokens."""

    def __init__(self, forward: Forward, tokens: int) -> None:
        self.inner, self.tokens, self.tried = forward, tokens, []
        self.ways, self.device, self.shares_prefixes, self.concurrent = (
            forward.ways,
            forward.device,
            False,
            forward.concurrent,
        )
        self.long_from = 0

    def nll(self, ids, *rest):
        self.tried.append(ids.numel())
        if ids.numel() > self.tokens:
            raise torch.OutOfMemoryError("no more")
        return self.inner.nll(ids, *rest)


def test_out_of_memory_halves_the_batch_and_is_remembered(passes):
    torch.manual_seed(0)
    forward = proven(MODELS["llama"]().eval())
    expected = Scorer(forward, 10_000).score(passes)
    device = Forgetful(forward, 200)
    scorer = Scorer(device, 10_000)
    assert scorer.score(passes) == pytest.approx(expected, rel=1e-5)
    assert scorer.budget <= 500
    failures = sum(tokens > 200 for tokens in device.tried)
    assert 1 <= failures <= 8
    device.tried.clear()
    scorer.score(passes)
    assert sum(tokens > 200 for tokens in device.tried) <= 1


def test_one_sequence_too_large_has_a_status_and_the_others_a_score(passes):
    torch.manual_seed(0)
    sums = Scorer(Forgetful(proven(MODELS["llama"]().eval()), 50), 10_000).score(passes)
    for one, total in zip(passes, sums, strict=True):
        assert (total == "out_of_memory") == (len(one.ids) - 1 > 50)  # the last token is not computed


def test_what_fits_alone_has_a_score_though_it_did_not_fit_beside_another_lane(passes):
    """Memory for one sequence of the longest kind: both lanes ask for it at the same time."""

    class Shared(Forgetful):
        def __init__(self, inner, tokens):
            super().__init__(inner, tokens)
            self.concurrent, self.free, self.lock = True, tokens, threading.Lock()

        def nll(self, ids, *rest):
            with self.lock:
                if ids.numel() > self.free:
                    raise torch.OutOfMemoryError("no more")
                self.free -= ids.numel()
            try:
                time.sleep(0.01)
                return self.inner.nll(ids, *rest)
            finally:
                with self.lock:
                    self.free += ids.numel()

    forward = proven(MODELS["llama"]().eval())
    device = Shared(forward, max(len(one.ids) for one in passes))
    assert Scorer(device, 64, cores=2).score(passes) == pytest.approx(Scorer(forward, 64).score(passes), rel=1e-5)


def test_a_long_neighbour_does_not_change_how_a_short_sequence_is_read():
    """longrope: one sequence over the limit and the model takes other frequencies for the whole batch."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "rope_theta": 1e4}
    rope["original_max_position_embeddings"] = 64
    torch.manual_seed(0)
    config = hf.Phi3Config(**BASE, max_position_embeddings=512, rope_parameters=rope)
    scorer = Scorer(proven(hf.Phi3ForCausalLM(config).eval()), 4096)
    numbers = np.random.default_rng(0)
    short, long = (Pass(numbers.integers(5, 400, n).astype(np.int32), 1) for n in (40, 200))
    assert scorer.score([short, long]) == pytest.approx([*scorer.score([short]), *scorer.score([long])], rel=1e-5)


def test_a_student_larger_than_the_memory_left_says_so(tmp_path, monkeypatch):
    def no_room(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 13.00 GiB.")

    monkeypatch.setattr(chunks, "load_model", no_room)
    spec = Spec(make_tiny_student(tmp_path), "vicuna", "aligned", 256, "float32", 64, 1)
    with pytest.raises(StageError, match=r"does not fit into the memory that cuda:0 has left: .* 13.00 GiB"):
        ChunkScorer(spec, "cuda:0")


def test_other_errors_are_not_taken_for_memory(passes):
    class Broken(Forgetful):
        def nll(self, ids, *rest):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Scorer(Broken(proven(MODELS["llama"]().eval()), 1), 100).score(passes)


def test_infinite_losses_have_a_status(passes):
    model = MODELS["llama"]().eval()
    forward = proven(model)
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    assert set(Scorer(forward, 128).score(passes)) == {"not_finite"}


def test_ids_beyond_the_models_vocabulary_have_a_status(tmp_path):
    path = make_tiny_student(tmp_path / "s")
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(path)
    scorer = ChunkScorer(Spec(path, "none", "aligned", 200, "float32", 0, 1), "cpu")
    items = [Item(t, t, Texts("Say it twice", "", t)) for t in ("so <extra> it is", "so it is")]
    bad, good = scorer.score(items, scorer.encode(items)).rows
    assert bad["status_response"] == "out_of_vocabulary" and bad["sum_nll_response"] is None
    assert good["status_response"] == "ok"


def test_compute_threads_sleep_while_they_wait() -> None:
    """Set by our own programs before torch is loaded; what is set already wins. Importing the package sets nothing."""
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    code = (
        "import os, sys, srt_assets; before = os.environ.get('OMP_WAIT_POLICY'); sys.argv = ['srt', '--version']\n"
        "from srt_assets.cli import main\ntry: main()\n"
        "finally: print(before, os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    for given, expected in ({}, "None PASSIVE False"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE ACTIVE False"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env | given)
        assert done.stdout.splitlines()[-1] == expected, done.stderr
