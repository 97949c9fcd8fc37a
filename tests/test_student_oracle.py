"""The whole path from texts to losses against an independent naive implementation, for both protocols."""

from __future__ import annotations

import pytest
import student_oracle
import torch
from tiny_student import make_tiny_student
from transformers import AutoModelForCausalLM, AutoTokenizer

from srt_assets.core.scoring.chunks import ChunkScorer, Item, Spec
from srt_assets.core.scoring.encoding import Texts
from srt_assets.core.tables import PASSES

TEXTS = [
    Texts("Name three fruits.", "", "Apples, pears and plums."),
    Texts("Name three fruits.", "", "Apples."),
    Texts("Name three fruits.", "They must be red.", "Cherries, strawberries and red apples are fruits."),
    Texts("Add.", "Add. 3 and 4", "7"),
    Texts("Schreibe ein Gedicht über Bäume", "", "Die Bäume rauschen — 木 — leise.\n\n" * 4),
    Texts("def add(a, b):", "", "    return a + b\n"),
    Texts(" spaces around ", " in ", " everywhere "),
    Texts("Be long.", "", "The sun is a star. " * 30),
    Texts("Be long. " * 40, "", "No."),
    Texts("x", "", "y"),
]


@pytest.fixture(scope="module", params=[False, True], ids=["without_bos", "with_bos"])
def student(request, tmp_path_factory):
    torch.set_num_threads(1)
    return make_tiny_student(tmp_path_factory.mktemp("student"), seed=3, bos=request.param)


def scores(path, template: str, protocol: str, max_length: int, texts=TEXTS, budget: int = 0) -> list[dict]:
    scorer = ChunkScorer(Spec(path, template, protocol, max_length, "float32", budget, 1), "cpu")
    items = [Item(str(i), str(i), t) for i, t in enumerate(texts)]
    return scorer.score(items, scorer.encode(items)).rows


CASES = [("aligned", t) for t in ("vicuna", "alpaca", "wizardlm", "chat", "none")]
CASES += [("official", t) for t in ("vicuna", "alpaca", "wizardlm")]


@pytest.mark.parametrize("max_length", [2048, 180])
@pytest.mark.parametrize(("protocol", "template"), CASES)
def test_every_loss_is_that_of_the_naive_way(student, protocol, template, max_length):
    model = AutoModelForCausalLM.from_pretrained(student).eval()
    tokenizer = AutoTokenizer.from_pretrained(student)
    naive = getattr(student_oracle, protocol)
    for texts, row in zip(TEXTS, scores(student, template, protocol, max_length), strict=True):
        for name, expected in zip(PASSES, naive(model, tokenizer, template, *texts, max_length), strict=True):
            if expected is None:
                assert row[f"sum_nll_{name}"] is None, (texts, name)
                assert row[f"status_{name}"] in ("prompt_too_long", "no_scored_tokens", "empty_target")
            else:
                assert row[f"status_{name}"] == "ok", (texts, name)
                assert row[f"n_tokens_{name}"] == expected[1]
                assert row[f"sum_nll_{name}"] / expected[1] == pytest.approx(expected[0], abs=1e-5)


def test_scores_do_not_depend_on_the_batch(student):
    alone = [scores(student, "vicuna", "aligned", 2048, [t])[0] for t in TEXTS]
    together = scores(student, "vicuna", "aligned", 2048)
    backwards = scores(student, "vicuna", "aligned", 2048, TEXTS[::-1])[::-1]
    narrow = scores(student, "vicuna", "aligned", 2048, budget=1)
    wide = scores(student, "vicuna", "aligned", 2048, budget=100_000)
    for rows in (together, backwards, narrow, wide):
        for one, other in zip(alone, rows, strict=True):
            for name in PASSES:
                assert one[f"status_{name}"] == other[f"status_{name}"]
                if one[f"status_{name}"] == "ok":
                    count = one[f"n_tokens_{name}"]
                    assert other[f"sum_nll_{name}"] / count == pytest.approx(one[f"sum_nll_{name}"] / count, abs=1e-5)


def test_a_ratio_compares_the_same_tokens(student):
    for row in scores(student, "vicuna", "aligned", 180):
        assert row["n_tokens_response"] == row["n_tokens_response_given_prompt"]
        assert row["n_tokens_instruction"] == row["n_tokens_instruction_given_response"]
