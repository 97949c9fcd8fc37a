"""A newer program has other prompts, and every key with them: what an older one paid for is not paid again."""

from collections.abc import Callable
from datetime import datetime

import pytest

from srt_assets.core.lake import Lake
from srt_assets.core.teacher import grammar, instructions, prompts, responses, stage
from srt_assets.core.teacher.call import Prompter, Source
from srt_assets.core.teacher.estimate import estimate
from srt_assets.core.teacher.lookup import Lookup
from srt_assets.core.teacher.steps import resolve
from srt_assets.core.teacher.why_call import explain
from srt_assets.settings import Settings, Teacher
from tests.fake_openai import FakeOpenAI, Plan
from tests.teacher_home import both, candidates, home, records, table, with_teacher
from tests.test_teacher_ledger import row, write

pytestmark = pytest.mark.usefixtures("quick_teacher")
SOURCE = Source("s", "reflect_instruction", "i", "x", "r")


@pytest.fixture
def upgrade(monkeypatch) -> Callable[[str], None]:
    """Become a program with other prompts, corrections included.

    Rows are made again as if a setting had changed as well: without that nobody would look at the ledger.
    """
    monkeypatch.setattr(stage.Reflection, "facts_of_program", frozenset())

    def become(version: str) -> None:
        for kind, text in prompts.CRITERIA.items():
            monkeypatch.setitem(prompts.CRITERIA, kind, f"{text}Be {version}.\n")
        monkeypatch.setattr(prompts, "PROMPT_VERSION", version)
        monkeypatch.setattr(stage, "PROMPT_VERSION", version)

    return become


def renewed(settings: Settings, lake: Lake, plan: stage.Reflection) -> list[tuple]:
    """What `srt run --renew` does with one slice; its rows."""
    plan.run(settings, lake, renew=True)
    return candidates(lake)


@pytest.mark.parametrize("batch", [False, True])
def test_an_upgrade_alone_asks_nothing_and_keeps_every_row(tmp_path, monkeypatch, upgrade, batch):
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 4, api_base=fake.base, batch=batch)
        both(settings, lake)
    before, hashes = candidates(lake), [m.content_hash for m in lake.manifests("candidates")]
    upgrade("newer")
    # Neither a server nor a key: there is nothing to ask.
    monkeypatch.delenv("OPENAI_API_KEY")
    stats = [outcome.stats for outcome in both(settings, lake)]
    assert [s["calls_paid"] for s in stats] == [0, 0]
    assert [s["replies_to_older_prompts"] for s in stats] == [4, 8]
    assert candidates(lake) == before and [m.content_hash for m in lake.manifests("candidates")] == hashes
    told = estimate(settings, lake)
    assert told.calls == 0 and "12 replies are to prompts of an older program" in " ".join(told.assumptions)
    ((sample_id, key),) = table(
        lake, "SELECT sample_id, call_key FROM candidates WHERE candidate = 'reflected_instruction' LIMIT 1"
    )
    first, *others = explain(settings, lake, sample_id)
    assert (first.verdict, first.call_key) == ("hit", key)
    assert first.why == (
        "asked by an older program (its prompts differ); "
        "`srt run reflected_instructions --renew` would pay for it again"
    )
    assert len(others) == 2 and all("`srt run reflected_responses --renew`" in finding.why for finding in others)


def test_renewing_asks_everything_anew_once(tmp_path, upgrade):
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 3, api_base=fake.base)
        both(settings, lake)
        old = candidates(lake)
        upgrade("newer")
        new = renewed(settings, lake, instructions.STAGE)
        assert fake.calls == 9 + 3 and new != old
        assert renewed(settings, lake, instructions.STAGE) == new and fake.calls == 12
        # The renewed replies are this program's own: they serve from now on, and after the next upgrade too.
        instructions.STAGE.run(settings, lake)
        assert candidates(lake) == new
        upgrade("newest")
        instructions.STAGE.run(settings, lake)
        assert candidates(lake) == new and fake.calls == 12


def test_a_call_that_could_not_be_renewed_is_unanswered(tmp_path, upgrade):
    with FakeOpenAI(
        lambda body, nth: Plan("400" if "item 1." in str(body) and "Be newer" in str(body) else "")
    ) as fake:
        settings, lake = home(tmp_path, 3, api_base=fake.base)
        instructions.STAGE.run(settings, lake)
        upgrade("newer")
        renewed(settings, lake, instructions.STAGE)
        statuses = "SELECT status, count(*) FROM candidates WHERE candidate <> 'original' GROUP BY 1 ORDER BY 1"
        assert table(lake, statuses) == [("call_failed", 1), ("ok", 2)]
        assert instructions.STAGE.run(settings, lake).cached and fake.calls == 6


@pytest.mark.slow
def test_what_the_user_changes_is_asked_after_an_upgrade_as_before(tmp_path, upgrade):
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 3, api_base=fake.base)
        instructions.STAGE.run(settings, lake)
        upgrade("newer")
        changes = {"temperature": 0.5}, {"model": "openai/other"}, {"reply_format": "json_schema"}
        for times, change in enumerate(changes, 2):
            instructions.STAGE.run(with_teacher(settings, **change), lake)
            assert fake.calls == 3 * times, change
        more, lake = home(tmp_path, rows=[*records(3), {"instruction": "New.", "output": "y"}], api_base=fake.base)
        assert estimate(more, lake).calls == 1 + 4 * 2
        assert instructions.STAGE.run(more, lake).stats["calls_paid"] == 1


def test_correction_turns_of_an_older_program_serve(tmp_path, upgrade):
    with FakeOpenAI(lambda body, nth: Plan() if len(body["messages"]) > 2 else Plan(text="No.")) as fake:
        settings, lake = home(tmp_path, 2, api_base=fake.base)
        both(settings, lake)
        before, asked = candidates(lake), fake.calls
        upgrade("newer")
        both(settings, lake)
        assert fake.calls == asked == 2 * (2 + 4) and candidates(lake) == before


def test_a_cut_reply_of_an_older_program_serves_as_many_tokens_as_it_was_allowed(tmp_path, upgrade):
    def cut(body, nth):
        return Plan(finish_reason="length" if body["max_tokens"] < 400 and "item 1." in str(body) else "stop")

    with FakeOpenAI(cut) as fake:
        settings, lake = home(tmp_path, 3, api_base=fake.base)
        instructions.STAGE.run(settings, lake)
        upgrade("newer")
        assert instructions.STAGE.run(settings, lake).stats["truncated_reply"] == 1 and fake.calls == 3
        roomy = with_teacher(settings, max_tokens=500)
        assert estimate(roomy, lake).by_purpose["reflect_instruction"] == 1
        assert instructions.STAGE.run(roomy, lake).stats["ok"] == 3 and fake.calls == 4


def test_a_call_that_an_older_program_gave_up_stays_given_up(tmp_path, upgrade):
    def fail(body, nth):
        return Plan("500" if "item 1." in str(body) else "400" if "item 2." in str(body) else "")

    with FakeOpenAI(fail) as fake:
        settings, lake = home(tmp_path, 4, api_base=fake.base, max_attempts=2)
        assert instructions.STAGE.run(settings, lake).stats["call_failed"] == 2 and fake.calls == 2 + 2 + 1
        upgrade("newer")
        assert instructions.STAGE.run(settings, lake).stats["call_failed"] == 2 and fake.calls == 5
        instructions.STAGE.run(with_teacher(settings, max_attempts=3), lake)
        assert fake.calls == 6
        upgrade("newest")
        instructions.STAGE.run(with_teacher(settings, max_attempts=3), lake)
        assert fake.calls == 6


def test_another_schema_is_another_program_too(tmp_path, monkeypatch):
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 2, api_base=fake.base, reply_format="json_schema")
        instructions.STAGE.run(settings, lake)
        schema = grammar.json_schema
        monkeypatch.setattr(grammar, "json_schema", lambda kind: schema(kind) | {"title": "newer"})
        monkeypatch.setattr(stage, "VERSION", "newer")
        monkeypatch.setattr(stage.Reflection, "facts_of_program", frozenset())
        assert instructions.STAGE.run(settings, lake).stats["calls_paid"] == 0 and fake.calls == 2
    ((sample_id,),) = table(lake, "SELECT sample_id FROM raw_records LIMIT 1")
    assert "(its schema, grammar or sampling differs)" in explain(settings, lake, sample_id)[0].why


def test_facts_that_are_not_equal_do_not_serve(tmp_path):
    """Null says nothing of what was asked; only `model_id` has something in its place, for before it was `model`."""
    lake, prompter = Lake(tmp_path), Prompter(Teacher(model="openai/m", reply_format="markers"))
    facts = {"purpose": SOURCE.purpose, "model": "openai/m", **prompter.call(SOURCE).facts, "prompt_version": "old"}

    def key(*rows: dict) -> str | None:
        home = Lake(tmp_path / str(len(list(tmp_path.iterdir()))))
        write(home, *(row(f"k{n}", **(facts | changed)) for n, changed in enumerate(rows)))
        with Lookup(home) as lookup:
            ((step),) = resolve(lookup, prompter, [SOURCE])
        return step.first.reply.key if step.first.reply else None

    lake.home.mkdir(exist_ok=True)
    assert key({}) == key({"model_id": None}) == "k0"
    others = {"purpose": "reflect_response", "source_key": "other", "temperature": 0.5, "reply_format": "grammar"}
    for name, value in (others | {"model_id": "openai/n", "status": "timeout"}).items():
        assert key({name: value}) is None, name
    for name in ("source_key", "temperature", "reply_format"):
        assert key({name: None}) is None, name
    assert key({"model_id": None, "model": "openai/n"}) is None
    # Of several versions the newest reply, but a whole one before a cut one, and of cut ones the longest.
    later, cut = {"created_at": datetime(2026, 2, 1)}, {"finish_reason": "length"}
    assert key({}, later) == "k1" and key({}, later | cut) == "k0"
    assert key(cut | {"max_tokens": 50}, later | cut) == "k0"


def test_without_an_older_program_nothing_is_said_of_one(tmp_path):
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 2, api_base=fake.base)
        assert all("replies_to_older_prompts" not in outcome.stats for outcome in both(settings, lake))
        assert "older" not in " ".join(estimate(settings, lake).assumptions)
        assert responses.STAGE.run(settings, lake).cached
