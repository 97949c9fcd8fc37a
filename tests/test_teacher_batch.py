"""File batches: submitted once, found again after a restart, only failures asked again."""

import pytest

from srt_assets.core.errors import StageError, UserError
from srt_assets.core.teacher import batch, instructions, responses
from srt_assets.core.teacher.client import litellm
from tests.fake_openai import FakeOpenAI, Plan
from tests.teacher_home import candidates, home, table, with_teacher


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(batch, "POLL_S", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "test-key-of-nobody")


@pytest.mark.slow
def test_batches_give_the_same_rows_as_single_calls(tmp_path):
    def plan(body, nth):
        # A reply that cannot be read (corrected in a second batch), one that fails once, one that always does.
        text = str(body["messages"])
        if "item 1." in text and len(body["messages"]) == 2:
            return Plan(text="no markers here")
        return Plan("500" if "item 2." in text and nth == 0 else "400" if "item 3." in text else "")

    with FakeOpenAI(plan) as fake:
        settings, lake = home(tmp_path / "batch", 6, api_base=fake.base, batch=True)
        outcome = instructions.STAGE.run(settings, lake)
        assert (outcome.stats["ok"], outcome.stats["call_failed"]) == (5, 1)
        assert fake.calls == 6 + 2
        responses.STAGE.run(settings, lake)
        assert not list((lake.directory("teacher_calls") / "batches").glob("*.json"))
        assert instructions.STAGE.run(settings, lake).cached
    with FakeOpenAI(plan) as fake:
        settings, other = home(tmp_path / "single", 6, api_base=fake.base)
        instructions.STAGE.run(settings, other), responses.STAGE.run(settings, other)
    assert candidates(lake) == candidates(other)


def test_a_restart_finds_the_open_batch(tmp_path, monkeypatch):
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 5, api_base=fake.base, batch=True)
        with monkeypatch.context() as patch:
            patch.setattr(batch._Desk, "collect", lambda self, path: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                instructions.STAGE.run(settings, lake)
        assert fake.calls == 5
        assert table(lake, "SELECT count(*) FROM teacher_calls") == [(0,)]
        assert instructions.STAGE.run(settings, lake).stats["ok"] == 5 and fake.calls == 5


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_death_around_the_submission_pays_nothing_twice(tmp_path, monkeypatch):
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 5, api_base=fake.base, batch=True)
        # Before the batch exists: nothing was asked, the restart submits it.
        with monkeypatch.context() as patch:
            patch.setattr(litellm(), "create_batch", interrupt)
            with pytest.raises(KeyboardInterrupt):
                instructions.STAGE.run(settings, lake)
        assert fake.calls == 0
        # After it was made, before its id was written: found by its mark, behind two pages of younger ones.
        written = []

        def write_once(path, state):
            if written:
                raise KeyboardInterrupt
            written.append(path)
            real_write(path, state)

        real_write = batch._write
        with monkeypatch.context() as patch:
            patch.setattr(batch, "_write", write_once)
            with pytest.raises(KeyboardInterrupt):
                instructions.STAGE.run(settings, lake)
        assert fake.calls == 5
        for i in range(5):
            other, elsewhere = home(tmp_path / f"other{i}", 1, api_base=fake.base, batch=True)
            instructions.STAGE.run(other, elsewhere)
        asked = fake.calls
        assert instructions.STAGE.run(settings, lake).stats["ok"] == 5 and fake.calls == asked


def test_a_death_after_the_replies_were_written_counts_them_once(tmp_path, monkeypatch):
    with FakeOpenAI(lambda body, nth: Plan("400" if "item 1." in str(body) else "")) as fake:
        settings, lake = home(tmp_path, 4, api_base=fake.base, batch=True)
        with monkeypatch.context() as patch:
            patch.setattr(batch.Path, "unlink", interrupt)
            with pytest.raises(KeyboardInterrupt):
                instructions.STAGE.run(settings, lake)
        stats = instructions.STAGE.run(settings, lake).stats
        assert (stats["ok"], stats["call_failed"], fake.calls) == (3, 1, 4)
        assert table(lake, "SELECT count(*), count(DISTINCT call_key) FROM teacher_calls") == [(4, 4)]


def test_only_what_expired_is_submitted_again(tmp_path):
    with FakeOpenAI(lambda body, nth: Plan("expired" if nth == 0 and "item 2." in str(body) else "")) as fake:
        settings, lake = home(tmp_path, 4, api_base=fake.base, batch=True, max_attempts=1)
        assert instructions.STAGE.run(settings, lake).stats["ok"] == 4 and fake.calls == 5
        assert all(paid == 1 for paid in fake.paid.values())
    assert table(lake, "SELECT count(*), max(attempt) FROM teacher_calls") == [(4, 1)]


def test_a_cancelled_batch_keeps_its_replies_and_asks_what_to_do(tmp_path):
    with FakeOpenAI(lambda body, nth: Plan("cancelled" if nth == 0 and "item 2." in str(body) else "")) as fake:
        settings, lake = home(tmp_path, 4, api_base=fake.base, batch=True)
        with pytest.raises(StageError, match="was cancelled"):
            instructions.STAGE.run(settings, lake)
        assert instructions.STAGE.run(settings, lake).stats["ok"] == 4
        assert fake.calls == 5 and all(paid == 1 for paid in fake.paid.values())


def test_a_refused_key_in_a_batch_loses_no_reply_of_it(tmp_path):
    with FakeOpenAI(lambda body, nth: Plan("401" if nth == 0 and "item 0." in str(body) else "")) as fake:
        settings, lake = home(tmp_path, 4, api_base=fake.base, batch=True)
        with pytest.raises(UserError, match="refuses every call"):
            instructions.STAGE.run(settings, lake)
        assert instructions.STAGE.run(settings, lake).stats["ok"] == 4 and fake.calls == 5
        assert all(paid == 1 for paid in fake.paid.values())


def test_an_open_batch_waits_for_its_own_model(tmp_path, monkeypatch):
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 2, api_base=fake.base, batch=True)
        with monkeypatch.context() as patch:
            patch.setattr(batch._Desk, "collect", interrupt)
            with pytest.raises(KeyboardInterrupt):
                instructions.STAGE.run(settings, lake)
        assert instructions.STAGE.run(with_teacher(settings, model="openai/other"), lake).stats["ok"] == 2
        assert instructions.STAGE.run(settings, lake).stats["ok"] == 2 and fake.calls == 4
    models = table(lake, "SELECT model, count(*) FROM teacher_calls GROUP BY 1 ORDER BY 1")
    assert models == [("openai/fake", 2), ("openai/other", 2)]


def test_a_budget_bounds_the_batch(tmp_path):
    with FakeOpenAI() as fake:
        prices = {"usd_per_million_input": 100.0, "usd_per_million_output": 100.0}
        settings, lake = home(tmp_path, 10, api_base=fake.base, batch=True, max_tokens=50, budget_usd=0.35, **prices)
        stats = instructions.STAGE.run(settings, lake).stats
        assert 0 < stats["ok"] < 10 and stats["ok"] + stats["over_budget"] == 10
        assert table(lake, "SELECT sum(cost_usd) <= 0.35 FROM teacher_calls") == [(True,)]
        assert instructions.STAGE.run(with_teacher(settings, budget_usd=100.0), lake).stats["ok"] == 10
        assert all(paid == 1 for paid in fake.paid.values())


def test_no_batches_for_a_provider_without_them(tmp_path):
    settings, lake = home(tmp_path, 1, model="ollama/llama3", batch=True)
    with pytest.raises(UserError, match="batches are not offered"):
        instructions.STAGE.run(settings, lake)
