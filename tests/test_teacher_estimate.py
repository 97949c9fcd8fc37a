"""What is still to pay, and why a call is no hit."""

import pytest

from srt_assets.core.errors import StageError, UserError
from srt_assets.core.lake import Lake
from srt_assets.core.teacher import instructions, responses
from srt_assets.core.teacher.estimate import estimate
from srt_assets.core.teacher.why_call import explain
from tests.fake_openai import FakeOpenAI, Plan
from tests.teacher_home import home, records, table, with_teacher

PRICES = {"usd_per_million_input": 2.0, "usd_per_million_output": 8.0}


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "test-key-of-nobody")


@pytest.mark.slow
def test_the_estimate_is_near_the_bill_and_falls_to_nothing(tmp_path):
    with FakeOpenAI() as fake:
        settings, lake = home(tmp_path, 40, api_base=fake.base, **PRICES)
        assert estimate(settings, lake).calls == 120
        few, small = home(tmp_path / "few", 25, api_base=fake.base, **PRICES)
        instructions.STAGE.run(few, small), responses.STAGE.run(few, small)
        # The ledger of the small run tells how long replies are; 25 of the 40 records are paid already.
        for path in small.directory("teacher_calls").iterdir():
            target = lake.directory("teacher_calls") / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        told = estimate(settings, lake)
        assert told.calls == 45 and any("in the ledger" in line for line in told.assumptions)
        before = table(lake, "SELECT coalesce(sum(cost_usd), 0) FROM teacher_calls")[0][0]
        instructions.STAGE.run(settings, lake), responses.STAGE.run(settings, lake)
        bill = table(lake, "SELECT sum(cost_usd) FROM teacher_calls")[0][0] - before
        assert told.usd == pytest.approx(bill, rel=0.2)
        assert estimate(settings, lake).calls == 0


def test_an_unpriced_model_has_tokens_but_no_price(tmp_path):
    settings, lake = home(tmp_path, 3, api_base="http://127.0.0.1:9/v1")
    told = estimate(settings, lake)
    assert told.usd is None and told.prompt_tokens > 0 and told.calls == 9
    assert estimate(with_teacher(settings, model="local"), lake).usd == 0.0
    with pytest.raises(StageError, match="raw_dataset"):
        estimate(settings, Lake(tmp_path / "empty"))


def test_the_estimate_says_what_it_rests_on(tmp_path):
    def lines(**teacher):
        return " / ".join(estimate(with_teacher(settings, **teacher), lake).assumptions)

    settings, lake = home(tmp_path, 3, api_base="http://127.0.0.1:9/v1")
    assert "unknown for 'openai/fake': set teacher.usd_per_million_input" in lines()
    assert "no price to hold it by" in lines(budget_usd=3.0)
    assert "not enough" in lines(budget_usd=0.001, **PRICES) and "left: enough" in lines(budget_usd=9.0, **PRICES)
    assert "longer replies are cut" in lines(max_tokens=50) and "the paper's" in lines(max_tokens=2048)
    assert "for batches" in lines(model="openai/gpt-4o-mini", batch=True)
    with pytest.raises(UserError, match="names no provider"):
        lines(model="nonsense", api_base="")


def test_the_estimate_counts_what_a_run_would_ask_and_nothing_else(tmp_path):
    def plan(body, nth):
        text = str(body)
        if "item 0." in text:
            return Plan(text="I'm sorry, but I cannot help with that.")
        return Plan(finish_reason="length" if "x x x" in text else "stop")

    long, longer = ({"instruction": "x " * n, "input": "", "output": "y"} for n in (3000, 6000))
    with FakeOpenAI(plan) as fake:
        options = {"api_base": fake.base, "context_tokens": 4000, "max_tokens": 900}
        settings, lake = home(tmp_path, rows=[*records(3), long, longer], **options)
        first = instructions.STAGE.run(settings, lake).stats
        assert (first["refused"], first["truncated_reply"], first["too_long"]) == (1, 1, 1)
        told = estimate(settings, lake)
        # Two instructions can be answered; the first answers of three more records, but not the one that is too long.
        assert told.by_purpose == {"reflect_response": 4, "reflect_response_of_reflected": 2}
        assert "successfully" not in " ".join(told.assumptions)
        assert responses.STAGE.run(settings, lake).stats["calls_paid"] == 6
        assert estimate(settings, lake).calls == 0
        ids = dict(table(lake, "SELECT instruction, sample_id FROM raw_records"))
        assert explain(settings, lake, ids[long["instruction"]])[0].verdict == "hit"
        assert explain(settings, lake, ids[longer["instruction"]])[0].verdict == "not_asked"
        # With more room, both calls of the instruction that was cut are still to be paid.
        roomy = estimate(with_teacher(settings, context_tokens=9000), lake)
        assert roomy.by_purpose["reflect_instruction"] == 2 and roomy.by_purpose["reflect_response_of_reflected"] == 2


@pytest.mark.slow
def test_every_reason_for_a_miss_is_named(tmp_path):
    def plan(body, nth):
        text = str(body)
        cut = "length" if "item 1." in text else "stop"
        return Plan("500" if "item 2." in text else "", finish_reason=cut)

    with FakeOpenAI(plan) as fake:
        settings, lake = home(tmp_path, 3, api_base=fake.base, max_attempts=1)
        ids = dict(table(lake, "SELECT instruction, sample_id FROM raw_records"))
        assert explain(settings, lake, ids["Explain item 0."])[0].verdict == "new"
        instructions.STAGE.run(settings, lake)

        def why(item: int, **teacher):
            return explain(with_teacher(settings, **teacher), lake, ids[f"Explain item {item}."])[0]

        assert why(0).verdict == "hit"
        assert why(1).verdict == "hit" and why(1, max_tokens=900).verdict == "cut"
        assert why(2).verdict == "failed" and "server_error" in why(2).why and "0 left" in why(2).why
        assert why(2, max_tokens=900).verdict != "failed"  # another allowance is another chance
        assert "teacher.model changed from 'openai/fake'" in why(0, model="openai/other").why
        assert "teacher.temperature changed from 0.0 to 0.7" in why(0, temperature=0.7).why
        assert "teacher.reply_format changed from 'markers' to 'json_schema'" in why(0, reply_format="json_schema").why
        # What the last run did not ask, it says so.
        limited = with_teacher(settings, model="openai/other", context_tokens=100)
        instructions.STAGE.run(limited, lake)
        assert explain(limited, lake, ids["Explain item 0."])[0].verdict == "not_asked"
        with pytest.raises(UserError, match="sample_id"):
            explain(settings, lake, "nobody")
