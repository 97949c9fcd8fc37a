"""Batches, packing and the held-out split: arithmetic that decides what a model sees, without a model."""

import hashlib
from collections.abc import Iterable

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srt_assets.core.training.plan import count_steps, pack, row_bound, step_samples
from srt_assets.core.training.rows import held_out_sql

CON = duckdb.connect()


def held_out_ids(ids: Iterable[str], share: float, seed: int) -> set[str]:
    CON.execute("CREATE OR REPLACE TEMP TABLE ids AS SELECT unnest(?::VARCHAR[]) AS sample_id", [sorted(ids)])
    return {i for (i,) in CON.execute(held_out_sql("ids", share, seed)).fetchall()}


LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 600), st.integers(1, 4))
def test_packing_holds_every_sample_once_within_the_budget(lengths: list[int], budget: int, processes: int) -> None:
    bins = pack(lengths, budget, processes)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert all(len(b) == 1 or sum(lengths[i] for i in b) <= budget for b in bins if b)
    # Sharded models need every process to make the same number of forward passes.
    assert len(bins) % processes == 0


def test_two_processes_share_a_step_that_one_row_could_hold() -> None:
    assert all(pack([10, 10, 10, 10], 1000, 2))


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 40), st.integers(0, 3))
def test_every_epoch_is_a_permutation(n: int, batch: int, steps: int, seed: int) -> None:
    plan = step_samples(n, batch, steps, seed)
    assert len(plan) == steps
    per_epoch = -(-n // batch)
    for start in range(0, steps - per_epoch + 1, per_epoch):
        assert sorted(np.concatenate(plan[start : start + per_epoch])) == list(range(n))


def test_the_order_is_the_seeds_and_a_prefix_of_a_longer_training() -> None:
    short, long = step_samples(20, 4, 6, seed=1), step_samples(20, 4, 12, seed=1)
    assert all((a == b).all() for a, b in zip(short, long, strict=False))
    assert any((a != b).any() for a, b in zip(short, step_samples(20, 4, 6, seed=2), strict=True))
    assert any((a != b).any() for a, b in zip(long[:5], long[5:10], strict=True))


@pytest.mark.parametrize(
    ("n", "batch", "epochs", "max_steps", "steps"),
    [(10, 4, 3, 0, 9), (10, 4, 0.5, 0, 2), (10, 4, 3, 5, 5), (3, 128, 3, 0, 3)],
)
def test_number_of_steps(n: int, batch: int, epochs: float, max_steps: int, steps: int) -> None:
    assert count_steps(n, batch, epochs, max_steps) == steps


@settings(deadline=None, max_examples=40)
@given(st.sets(st.text("abcdef0123456789", min_size=16, max_size=16), min_size=2, max_size=80), st.floats(0.01, 0.5))
def test_a_record_is_held_out_whatever_else_was_selected(ids: set[str], share: float) -> None:
    held = held_out_ids(ids, share, seed=0)
    assert held and held <= ids
    fewer = set(sorted(ids)[: len(ids) // 2 + 1])
    if len(held_out_ids(fewer, share, seed=0)) > 1:
        assert held_out_ids(fewer, share, seed=0) == held & fewer


def test_share_of_the_split() -> None:
    ids = [f"{i:016x}" for i in range(4000)]
    assert 0.04 < len(held_out_ids(ids, 0.05, seed=0)) / 4000 < 0.06
    assert held_out_ids(ids, 0.0, seed=0) == set()
    assert held_out_ids(ids, 0.05, seed=0) != held_out_ids(ids, 0.05, seed=1)


@settings(deadline=None, max_examples=40)
@given(st.sets(st.text("abcdef0123456789é", min_size=1, max_size=16), min_size=1, max_size=40), st.floats(0.0, 1.0))
def test_the_split_is_the_one_that_older_programs_made(ids: set[str], share: float) -> None:
    """As they computed it in Python: another split would be another training."""
    hashes = ((hashlib.sha256(f"7:{i}".encode()).digest(), i) for i in ids)
    ranked = sorted((int.from_bytes(hash[:8]) / 2**64, i) for hash, i in hashes)
    held = {i for place, i in ranked if place < share} or {i for _, i in ranked[:1]}
    assert held_out_ids(ids, share, seed=7) == (held if share > 0 else set())


def first_fit(lengths: list[int], budget: int, processes: int) -> list[list[int]]:
    """First-fit decreasing as the textbook has it: look at every bin."""
    room = min(budget, -(-sum(lengths) // processes)) if processes > 1 else budget
    bins: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for found in bins:
            if sum(lengths[i] for i in found) + lengths[item] <= room:
                found.append(item)
                break
        else:
            bins.append([item])
    return bins + [[] for _ in range(-len(bins) % processes)]


@given(LENGTHS, st.integers(1, 1500), st.integers(1, 4))
def test_packing_is_the_textbooks(lengths: list[int], budget: int, processes: int) -> None:
    assert pack(lengths, budget, processes) == first_fit(lengths, budget, processes)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 1500), st.integers(1, 20), st.data())
def test_no_row_of_any_step_has_more_tokens_than_was_reckoned_with(
    lengths: list[int], budget: int, batch_size: int, draw: st.DataObject
) -> None:
    targets = [draw.draw(st.integers(1, n)) for n in lengths]
    tokens, learned = row_bound(np.array(lengths), np.array(targets), batch_size, budget)
    assert max(targets) <= learned <= tokens <= max(budget, *lengths, 0)
    for step in step_samples(len(lengths), batch_size, 5, 0):
        rows = pack([lengths[i] for i in step], budget)
        assert max(sum(lengths[step[i]] for i in row) for row in rows) <= tokens


def test_packing_is_not_quadratic() -> None:
    """A look at every bin for every sample would be 2 * 10**9 looks, which takes minutes."""
    lengths = np.random.default_rng(0).integers(400, 1000, 60_000).tolist()
    bins = pack(lengths, 1000)
    assert sum(map(len, bins)) == 60_000
