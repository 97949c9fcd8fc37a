"""Packed rows have the losses and gradients that samples have one at a time, and no sample sees another."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from srt_assets.core.training.packed import Example, make_row, mean_loss, packing_is_exact, summed_loss
from tests.tiny_student import make_tiny_student


def examples(n: int = 6, vocab: int = 300) -> list[Example]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        length = int(rng.integers(5, 40))
        made.append(Example(f"s{i}", rng.integers(4, vocab, length).astype(np.int32), int(rng.integers(1, length - 1))))
    return made


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    directory = make_tiny_student(tmp_path_factory.mktemp("student"))
    return AutoModelForCausalLM.from_pretrained(directory)


def qwen() -> nn.Module:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config)


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3))


def gradients(model: nn.Module) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


def naive(model: nn.Module, example: Example) -> torch.Tensor:
    """The stock way: the sample alone, labels -100 on the prompt, the model's own mean loss."""
    ids = torch.from_numpy(example.ids.astype(np.int64))[None]
    labels = ids.clone()
    labels[:, : example.start] = -100
    return model(input_ids=ids, labels=labels, use_cache=False).loss * example.n_targets


@pytest.mark.parametrize("make", ["llama", qwen, gpt2], ids=["llama", "qwen3", "gpt2"])
def test_one_packed_row_is_the_sum_of_its_samples_alone(make, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(make) if isinstance(make, str) else make()
    model.eval()
    samples = examples()
    together = summed_loss(model, make_row(samples))
    together.backward()
    packed = gradients(model)
    alone = sum(naive(model, e) for e in samples)
    alone.backward()
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
    for a, b in zip(packed, gradients(model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_sample_does_not_notice_its_neighbours(llama: nn.Module) -> None:
    first, second, third = examples(3)
    other = Example("x", (second.ids + 7) % 300, second.start)

    def logits(*row: Example) -> torch.Tensor:
        r = make_row(row)
        return llama(input_ids=r.ids, position_ids=r.positions, use_cache=False).logits[0]

    a, b = logits(first, second, third), logits(first, other, third)
    n, m = len(first.ids), len(second.ids)
    torch.testing.assert_close(a[:n], b[:n], rtol=0, atol=1e-5)
    torch.testing.assert_close(a[n + m :], b[n + m :], rtol=0, atol=1e-5)
    assert not torch.allclose(a[n : n + m], b[n : n + m])


def test_the_probe_accepts_bounds_and_notices_their_absence(llama: nn.Module) -> None:
    class Leaky(nn.Module):
        """An architecture that takes positions for what they are and masks nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = llama

        def forward(self, input_ids, position_ids, logits_to_keep, use_cache):
            mask = torch.ones_like(input_ids)
            return self.inner(input_ids=input_ids, attention_mask=mask, logits_to_keep=logits_to_keep)

    assert packing_is_exact(llama, examples(), "fp32")
    assert not packing_is_exact(Leaky(), examples(), "fp32")


def test_mean_loss_does_not_depend_on_the_packing(llama: nn.Module) -> None:
    samples = examples(8)
    expected = sum(naive(llama, e).item() for e in samples) / sum(e.n_targets for e in samples)
    for budget in (1, 40, 10_000):
        assert mean_loss(llama, samples, budget) == pytest.approx(expected, rel=1e-5)


def test_a_row_without_samples_weighs_nothing(llama: nn.Module) -> None:
    loss = summed_loss(llama, make_row([]))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(float(g.abs().max()) == 0.0 for g in gradients(llama))


def test_only_the_response_is_learned_from() -> None:
    row = make_row([Example("s", np.array([5, 6, 7, 8], dtype=np.int32), 2)])
    assert row.targets.tolist() == [7, 8]
    assert row.keep.tolist() == [1, 2]
