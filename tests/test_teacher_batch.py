"""File batches: submitted once, found again after a restart, only failures asked again."""

import pytest

from srt_assets.core.errors import UserError
from srt_assets.core.teacher import batch, instructions, responses
from tests.fake_openai import FakeOpenAI, Plan
from tests.teacher_home import candidates, home, table, with_teacher


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(batch, "POLL_S", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "test-key-of-nobody")


def test_batches_give_the_same_rows_as_single_calls(tmp_path):
    def plan(body, nth):
        # A reply that cannot be read (corrected in a second batch), one that fails once, one that always does.
        text = str(body["messages"])
        if "item 1." in text and len(body["messages"]) == 2:
            return Plan(text="no markers here")
        return Plan("500" if "item 2." in text and nth == 0 else "400" if "item 3." in text else "")

    with FakeOpenAI(plan) as fake:
        settings, lake = home(tmp_path / "batch", 6, api_base=fake.base, batch=True)
        outcome = instructions.run(settings, lake)
        assert (outcome.stats["ok"], outcome.stats["call_failed"]) == (5, 1)
        assert fake.calls == 6 + 2
        responses.run(settings, lake)
        assert not list((lake.directory("teacher_calls") / "batches").glob("*.json"))
        assert instructions.run(settings, lake).cached
    with FakeOpenAI(plan) as fake:
        settings, other = home(tmp_path / "single", 6, api_base=fake.base)
        instructions.run(settings, other), responses.run(settings, other)
    assert candidates(lake) == candidates(other)


def test_a_restart_finds_the_open_batch(tmp_path, monkeypatch):
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 5, api_base=fake.base, batch=True)
        with monkeypatch.context() as patch:
            patch.setattr(batch._Desk, "collect", lambda self, path: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                instructions.run(settings, lake)
        assert fake.calls == 5
        assert table(lake, "SELECT count(*) FROM teacher_calls") == [(0,)]
        assert instructions.run(settings, lake).stats["ok"] == 5 and fake.calls == 5


def test_a_budget_bounds_the_batch(tmp_path):
    with FakeOpenAI() as fake:
        prices = {"usd_per_million_input": 100.0, "usd_per_million_output": 100.0}
        settings, lake = home(tmp_path, 10, api_base=fake.base, batch=True, max_tokens=50, budget_usd=0.35, **prices)
        stats = instructions.run(settings, lake).stats
        assert 0 < stats["ok"] < 10 and stats["ok"] + stats["over_budget"] == 10
        assert table(lake, "SELECT sum(cost_usd) <= 0.35 FROM teacher_calls") == [(True,)]
        assert instructions.run(with_teacher(settings, budget_usd=100.0), lake).stats["ok"] == 10
        assert all(paid == 1 for paid in fake.paid.values())


def test_no_batches_for_a_provider_without_them(tmp_path):
    settings, lake = home(tmp_path, 1, model="ollama/llama3", batch=True)
    with pytest.raises(UserError, match="batches are not offered"):
        instructions.run(settings, lake)
