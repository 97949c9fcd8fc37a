"""What a student proves before it scores: which ways it may be asked, who is refused, what is kept of it."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from student_lake import RECORDS, four, make_lake, put_candidates, scores_of, settings_for
from tiny_student import make_tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from srt_assets.commands import doctor
from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.scoring import proof, proofs, ready
from srt_assets.core.scoring import stage as scores
from srt_assets.core.scoring.encoding import Encoder, Pass, Texts
from srt_assets.core.scoring.model import Forward, Ways
from srt_assets.core.scoring.proof import prove
from srt_assets.core.scoring.proofs import Place
from srt_assets.core.scoring.scorer import Scorer
from srt_assets.core.students import checkpoints
from srt_assets.core.tables import PASSES

torch.set_num_threads(1)
SIZES = dict(
    vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=3,
)  # fmt: skip
EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)
BERT = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**SIZES),
    "gemma2": lambda: hf.Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=5.0),
    "mixtral": lambda: hf.MixtralConfig(**SIZES, **EXPERTS),
    "mamba": lambda: hf.MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, state_size=4),
    "bert": lambda: hf.BertConfig(**BERT, is_decoder=False),
}


def build(kind: str) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()


def passes(n: int = 12) -> list[Pass]:
    drawn = np.random.default_rng(1)
    return [Pass(drawn.integers(5, 320, drawn.integers(3, 50)).astype(np.int32), 1) for _ in range(n)]


def whole_loss(model, one: Pass) -> float:
    ids = torch.from_numpy(one.ids.astype(np.int64))[None]
    with torch.no_grad():
        log_p = model(input_ids=ids[:, :-1]).logits[0].log_softmax(-1)
    return -float(log_p[range(one.start - 1, ids.shape[1] - 1), ids[0, one.start :]].sum())


@pytest.mark.parametrize(
    ("kind", "path", "prefixes"),
    [
        ("llama", "fast", True),
        ("gemma2", "whole forward pass", False),
        ("mixtral", "fast", True),
        ("mamba", "fast", False),
        ("bert", "refused: it is not causal: what follows a token changes how likely it finds that token", False),
    ],
)
def test_kinds_of_architectures(kind: str, path: str, prefixes: bool) -> None:
    model = build(kind)
    found = prove(model)
    assert (found.path, found.ways.prefixes) == (path, prefixes)
    if not found.refused:
        sums = Scorer(Forward(model, found.ways), 128, cores=2).score(passes())
        assert sums == pytest.approx([whole_loss(model, one) for one in passes()], rel=1e-5)


def test_each_way_is_measured_over_enough_tokens() -> None:
    trial = proof._Trial(build("llama"), (), ())
    assert len(trial.sequences) * (trial.cut - 1) >= proof.TARGETS, "causality"
    assert sum(len(one) - 1 - trial.shared for one in trial.sequences) >= proof.TARGETS, "all others"
    assert len({len(one) for one in trial.sequences}) == len(trial.sequences), "padding would not be seen"
    text = list(range(200, 300))
    with_text = proof._Trial(build("llama"), text, [7, 8]).sequences
    assert {*with_text[0].tolist(), *with_text[2].tolist()} <= set(text)
    drawn = {*with_text[1].tolist(), *with_text[3].tolist()}
    assert not drawn <= set(text) and not {7, 8} & drawn
    few = proof._Trial(build("llama"), [200, 201, 202], ()).sequences
    assert [len(one) for one in few] == [len(one) for one in with_text], "a tokenizer that makes few tokens of the text"


def test_a_model_with_few_positions_is_measured_within_them() -> None:
    config = hf.GPT2Config(vocab_size=320, n_embd=16, n_layer=1, n_head=2, n_positions=24, initializer_range=0.3)
    model = hf.GPT2LMHeadModel(config).eval()
    found = prove(model)
    assert found.path == "fast" and found.ways.prefixes
    trial = proof._Trial(model, (), ())
    assert len(trial.sequences) * (trial.cut - 1) >= proof.TARGETS and max(map(len, trial.sequences)) <= 24


class Odd(torch.nn.Module):
    """A causal model whose forward pass has a fault of its own, which `harm(logits, ids)` puts into its logits."""

    def __init__(self, harm) -> None:
        super().__init__()
        self.inner, self.harm = build("llama"), harm
        self.config = self.inner.config
        for name in ("get_input_embeddings", "get_output_embeddings", "get_decoder"):
            setattr(self, name, getattr(self.inner, name))

    def forward(self, input_ids, **options):
        out = self.inner(input_ids=input_ids, **options)
        out.logits = self.harm(out.logits, input_ids)
        return out


def capped(logits, _):
    return 3 * torch.tanh(logits / 3)


def looks_ahead(logits, ids):
    return logits * (1 + ids.float().std() / 300)


def random(logits, _):
    return logits + torch.rand_like(logits)


@pytest.mark.parametrize(
    ("harm", "path"),
    [
        (capped, "whole forward pass"),
        (looks_ahead, "refused: it is not causal: what follows a token changes how likely it finds that token"),
        (random, "refused: it gives other losses each time it reads the same text"),
        (lambda logits, _: logits * float("nan"), "refused: it gives no number as a loss, whatever it reads"),
        (lambda logits, _: logits.no_such, "refused: it cannot read a sequence of tokens (AttributeError: "),
    ],
    ids=["caps logits", "not causal", "random", "nan", "fails"],
)
def test_what_fails_is_not_done(harm, path: str) -> None:
    model = Odd(harm).eval()
    found = prove(model)
    assert found.path.startswith(path)
    if not found.refused:
        assert not found.ways.threads and found.why
        scorer = Scorer(Forward(model, found.ways), 400)
        assert scorer.score(passes()) == pytest.approx([whole_loss(model, one) for one in passes()], rel=1e-5)


def test_batches_that_change_a_loss_are_not_made(monkeypatch) -> None:
    """Experts with room for so many tokens, say: what stands beside a sequence decides who reads it."""
    model = build("llama")
    right = model.model.forward

    def crowded(input_ids, **options):
        out = right(input_ids=input_ids, **options)
        out.last_hidden_state = out.last_hidden_state * (1 + 0.1 * (len(input_ids) - 1))
        return out

    monkeypatch.setattr(model.model, "forward", crowded)
    found = prove(model)
    assert found.path == "fast, one sequence at a time" and found.ways.prefixes and not found.ways.threads
    scorer = Scorer(Forward(model, found.ways), 4096, [passes()[0].ids[:2].tolist()], cores=2)
    assert scorer.score(passes()) == pytest.approx([whole_loss(model, one) for one in passes()], rel=1e-5)


def test_beginnings_are_shared_only_if_that_changes_nothing(monkeypatch) -> None:
    """A model that reads on after a cache as if it had seen one token more."""
    model = build("llama")
    right = model.model.forward

    def off_by_one(input_ids, past_key_values=None, **options):
        if past_key_values is not None:
            start = past_key_values.get_seq_length() + 1
            options["position_ids"] = torch.arange(start, start + input_ids.shape[1])[None]
        return right(input_ids=input_ids, past_key_values=past_key_values, **options)

    monkeypatch.setattr(model.model, "forward", off_by_one)
    found = prove(model)
    assert found.path == "fast" and not found.ways.prefixes
    assert found.measured["prefix"] > proof.EXACT > found.measured["batch"]


def test_a_model_that_keeps_notes_is_asked_one_call_at_a_time(monkeypatch) -> None:
    """Recurrent Gemma keeps its states in its layers: two threads would mix them up."""
    model = build("llama")
    right = model.model.forward

    def noting(input_ids, **options):
        model.model.notes = input_ids.clone()
        return right(input_ids=input_ids, **options)

    assert prove(model).ways.threads and Forward(model, prove(model).ways).concurrent
    monkeypatch.setattr(model.model, "forward", noting)
    assert prove(model).path == "fast" and not prove(model).ways.threads


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_low_precision_is_measured_against_its_own_rounding(kind: str) -> None:
    found = prove(build(kind).to(torch.bfloat16))
    assert found.path == "fast"
    assert proof.EXACT <= found.measured["limit"] <= proof.LOW
    assert found.measured["batch"] <= found.measured["limit"]


def test_low_precision_hides_no_look_at_later_tokens_and_no_cap() -> None:
    assert "not causal" in prove(build("bert").to(torch.bfloat16)).refused
    assert prove(Odd(capped).to(torch.bfloat16).eval()).path == "whole forward pass"


def test_numbers_that_overflow_in_half_precision_are_no_refusal() -> None:
    found = prove(Odd(lambda logits, _: logits * float("inf")).to(torch.float16).eval())
    assert found.path == "whole forward pass, one sequence at a time"


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_long_sequences_of_changing_frequencies_do_not_depend_on_what_was_read_before(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "original_max_position_embeddings": 40}
    most = 40 if kind == "dynamic" else 400
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, max_position_embeddings=most, rope_parameters=rope)).eval()
    found = prove(model)
    assert found.path == "fast" and not found.ways.prefixes
    drawn = np.random.default_rng(0)
    some = [Pass(drawn.integers(5, 320, n).astype(np.int32), 1) for n in (70, 20, 60, 90, 30, 60)]

    def fresh(one: Pass) -> float:
        copy = hf.LlamaForCausalLM(model.config).eval()
        copy.load_state_dict(model.state_dict())
        return whole_loss(copy, one)

    assert Scorer(Forward(model, found.ways), 4096).score(some) == pytest.approx([fresh(p) for p in some], rel=1e-5)


# -- what is kept


@pytest.fixture
def bench(home: Path) -> Lake:
    return make_lake(home)


def measured(monkeypatch) -> list[int]:
    """Counts the measurements from now on."""
    calls: list[int] = []
    whole = ready.prove
    monkeypatch.setattr(ready, "prove", lambda *a: calls.append(1) or whole(*a))
    return calls


def place_of(lake: Lake, **changes: str) -> Place:
    info = checkpoints.get(lake, "tiny")
    return Place(**{"home": lake.home, "fingerprint": info.fingerprint, "device": "cpu", "dtype": "float32"} | changes)


def test_a_proof_is_kept_and_said(bench: Lake, monkeypatch) -> None:
    calls = measured(monkeypatch)
    stats = scores.STAGE.run(settings_for(), bench, "tiny").stats
    assert stats["forward_pass"] == "fast" and stats["beginnings"] == "shared"
    assert 0 < stats["proof_batch"] < stats["proof_limit"] == proof.EXACT
    scores.STAGE.run(settings_for(template="alpaca"), bench, "tiny")
    assert calls == [1]
    assert scores.STAGE.describe(bench, "tiny").numbers["forward_passes"].startswith("float32 on cpu (")
    (file,) = (bench.home / "proofs").glob("*/*.json")
    kept = json.loads(file.read_text())
    assert kept["path"] == "fast" and {"torch", "transformers", "device", "dtype"} <= kept["of"].keys()
    file.write_text("{")
    scores.STAGE.run(settings_for(template="wizardlm"), bench, "tiny")
    assert calls == [1, 1], "a damaged one is measured again"


@pytest.mark.parametrize("change", ["library", "measurement", "device", "dtype", "student"])
def test_a_proof_is_of_one_student_library_device_and_precision(bench: Lake, monkeypatch, change: str) -> None:
    place_of(bench).keep(lambda: proof.Proof(Ways("head")))
    assert place_of(bench).known() == proof.Proof(Ways("head"))
    changes = {"dtype": {"dtype": "bfloat16"}, "student": {"fingerprint": "f" * 64}}.get(change, {})
    if change == "library":
        monkeypatch.setattr(proofs, "_version", lambda name: "99")
    elif change == "measurement":
        monkeypatch.setattr(proof, "VERSION", "99")
    elif change == "device":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert place_of(bench, **changes).known() is None


def test_workers_that_start_together_measure_once(bench: Lake) -> None:
    calls: list[int] = []

    def measure() -> proof.Proof:
        calls.append(1)
        return proof.Proof(Ways("head"), measured={"head": None, "limit": 1e-4})

    found: list[proof.Proof] = []
    threads = [threading.Thread(target=lambda: found.append(place_of(bench).keep(measure))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1] and len(found) == 4 and len({repr(one) for one in found}) == 1


def student_of(kind: str, folder: Path) -> Path:
    build(kind).save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_student_that_looks_ahead_is_refused_by_name_and_not_loaded_twice(bench: Lake, tmp_path: Path, monkeypatch):
    checkpoints.add(settings_for(), bench, str(student_of("bert", tmp_path / "bert")), "looks-ahead")
    said = r"^the student looks-ahead cannot be scored: it is not causal: .*\n.*-> take a causal language model"
    with pytest.raises(UserError, match=said):
        scores.STAGE.run(settings_for(), bench, "looks-ahead")
    monkeypatch.setenv("SRT_HOME", str(bench.home))
    assert any(f.level == "error" and "looks-ahead" in f.what and "not causal" in f.what for f in doctor.examine())
    monkeypatch.setattr(ready, "load_whole", lambda *a, **b: pytest.fail("loaded again"))
    with pytest.raises(UserError, match=said):
        scores.STAGE.run(settings_for(), bench, "looks-ahead")


def capped_student(folder: Path) -> Path:
    """A cap that bends nothing among the first ids of the vocabulary, and nearly everything else."""
    torch.manual_seed(0)
    config = hf.Gemma2Config(**SIZES | {"initializer_range": 0.02}, head_dim=8, final_logit_softcapping=5.0)
    config.tie_word_embeddings = False
    model = hf.Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        embeddings.normal_(0, 1)
        embeddings[:, 0], embeddings[8:, 0] = 0, 30.0
        head.normal_(0, 0.01)
        head[20:60, 0] = 3.0
    model.save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_cap_that_a_look_at_a_few_ids_overlooks(home: Path, tmp_path: Path, caplog) -> None:
    lake = Lake(home)
    put_candidates(lake, [row for r in RECORDS for row in four(r)])
    folder = capped_student(tmp_path / "capped")
    info = checkpoints.add(settings_for(), lake, str(folder), "capped")
    with caplog.at_level(logging.WARNING):
        stats = scores.STAGE.run(settings_for(), lake, "capped").stats
    assert stats["forward_pass"] == "whole forward pass"
    assert "student capped is scored by its whole forward pass, for its output layer" in caplog.text
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    encoder = Encoder(tokenizer, "vicuna", "aligned", 2048)
    rows = scores_of(lake)
    for candidate in four(RECORDS[0]):
        encoded = encoder.encode([Texts(candidate["instruction"], candidate["input"], candidate["response"])])[0]
        row = rows[candidate["sample_id"], candidate["candidate"]]
        for name in PASSES:
            one = encoded[name]
            assert isinstance(one, Pass)
            ids = torch.from_numpy(one.ids.astype(np.int64))[None]
            labels = ids.clone()
            labels[:, : one.start] = -100
            with torch.no_grad():
                expected = model(input_ids=ids, labels=labels).loss.item()
            assert row[f"sum_nll_{name}"] / one.n_scored == pytest.approx(expected, abs=1e-4)
    assert info.caps_logits and {row["scoring_version"] for row in rows.values()} == {"3"}


def test_only_students_that_cap_their_logits_are_scored_again(bench: Lake, tmp_path: Path) -> None:
    """Until version 3 a cap could be overlooked; what others have on disk was right and stays."""
    plain = checkpoints.get(bench, "tiny")
    assert not plain.caps_logits and scores.STAGE.wanted(settings_for(), bench, "tiny").facts["code"] == "2"
    checkpoints.add(settings_for(), bench, str(capped_student(tmp_path / "capped")), "capped")
    assert scores.STAGE.wanted(settings_for(), bench, "capped").facts["code"] == "3"
