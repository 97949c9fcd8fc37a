"""All pairs of a stage are looked up together: the rows are those of one by one, and few look-ups serve for many."""

import itertools
import math
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srt_assets.core.lake import Lake
from srt_assets.core.teacher import asking, fill, instructions, known, lookup, responses, rows, sealing, stage, survey
from srt_assets.core.teacher.estimate import estimate
from srt_assets.core.teacher.lookup import Lookup
from tests.fake_openai import FakeOpenAI, Plan
from tests.teacher_home import both, candidates, home
from tests.test_teacher_ledger import row, write

pytestmark = pytest.mark.usefixtures("quick_teacher")
FACTS = {"temperature": 0.0, "reply_format": "markers", "parameters": None, "model_id": "m"}


def mixed(body: dict, nth: int) -> Plan:
    """Replies of every kind: corrected ones, refused ones, some that fail for good."""
    text = str(body["messages"])
    for number, plan in enumerate((Plan(text="nothing"), Plan(text=""), Plan("400"), Plan(finish_reason="length"))):
        if f"item {2 * number}." in text and (number > 1 or len(body["messages"]) == 2):
            return plan
    return Plan(text="nothing") if "item 9." in text else Plan()


def again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the parser had changed: rows are made again from the ledger."""
    monkeypatch.setattr(stage, "VERSION", f"{stage.VERSION}'")
    monkeypatch.setattr(stage.Reflection, "facts_of_program", frozenset())


def parts(lake: Lake) -> list[list[dict]]:
    """The rows of both assets as they stand in their files."""
    import pyarrow.parquet as pq

    return [
        [row for path in lake.parts("candidates", plan.share) for row in pq.read_table(path).to_pylist()]
        for plan in (instructions.STAGE, responses.STAGE)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [False, True])
def test_the_rows_are_the_same_however_few_are_held_at_a_time(tmp_path, monkeypatch, batch):
    with FakeOpenAI(mixed) as fake:
        settings_, lake = home(tmp_path / "many", 12, api_base=fake.base)
        both(settings_, lake)
    for module, name in ((fill, "ROWS"), (survey, "ROWS"), (lookup, "ROWS"), (known, "_FETCHED")):
        monkeypatch.setattr(module, name, 1)
    monkeypatch.setattr(asking, "_TOGETHER", 2)
    monkeypatch.setattr(rows, "PART_ROWS", 3)
    with FakeOpenAI(mixed) as fake:
        settings_, few = home(tmp_path / "few", 12, api_base=fake.base, batch=batch)
        both(settings_, few)
        assert all(paid == 1 for paid in fake.paid.values())
        assert len(few.parts("candidates")) > 8
        assert candidates(few) == candidates(lake) and parts(few) == parts(lake)
        asked = fake.calls
        again(monkeypatch)
        both(settings_, few)
        assert fake.calls == asked and parts(few) == parts(lake)
    first, second = parts(lake)
    order = [(row["dataset"], row["sample_id"]) for row in first]
    assert order == sorted(order) and [(row["dataset"], row["sample_id"]) for row in second] == order
    assert [row["candidate"] for row in first[:2]] == ["original", "reflected_instruction"]
    assert len({row["status"] for row in first + second}) > 4


@pytest.mark.slow
def test_many_pairs_need_as_many_look_ups_as_few(tmp_path, monkeypatch):
    seen = []
    plain = Lookup.look_up
    monkeypatch.setattr(Lookup, "look_up", lambda self, *args: seen.append(1) or plain(self, *args))
    monkeypatch.setattr(fill, "ROWS", 2)
    monkeypatch.setattr(survey, "ROWS", 2)
    counts = []
    for n in (2, 14):
        with FakeOpenAI() as fake:
            settings_, lake = home(tmp_path / str(n), n, api_base=fake.base)
            both(settings_, lake)
        again(monkeypatch)
        seen.clear()
        estimate(settings_, lake)
        both(settings_, lake)
        counts.append(len(seen))
    assert counts[0] == counts[1] < 20


def test_records_that_need_the_same_call_ask_it_once(tmp_path):
    """A blank input is no input to the teacher, but another record."""
    same = [{"instruction": "Explain.", "input": blank, "output": "So."} for blank in ("", " ", "  ")]
    with FakeOpenAI() as fake:
        settings_, lake = home(tmp_path, rows=same, api_base=fake.base)
        assert estimate(settings_, lake).by_purpose["reflect_instruction"] == 1
        first, second = both(settings_, lake)
        assert (first.stats["ok"], first.stats["calls_paid"], first.stats["cache_hits"]) == (3, 1, 2)
        assert (second.stats["ok"], second.stats["calls_paid"]) == (6, 2)


def test_an_estimate_of_finished_assets_looks_nothing_up(tmp_path, monkeypatch):
    with FakeOpenAI() as fake:
        settings_, lake = home(tmp_path, 3, api_base=fake.base)
        both(settings_, lake)
    monkeypatch.setattr(Lookup, "look_up", lambda self, *args: pytest.fail("it read the ledger"))
    assert estimate(settings_, lake).calls == 0


def test_a_segment_that_is_sealed_while_it_is_read_counts_once(tmp_path, monkeypatch):
    lake = Lake(tmp_path)
    connect = Lake.connect

    def sealed_before(self, *args):
        monkeypatch.setattr(Lake, "connect", connect)
        sealing.seal(self)
        return connect(self, *args)

    def sealed_after(self, *args):
        monkeypatch.setattr(Lake, "connect", connect)
        con = connect(self, *args)
        sealing.seal(self)
        return con

    for n, way in enumerate((sealed_before, sealed_after)):
        write(lake, row(f"k{n}", cost_usd=1.0))
        monkeypatch.setattr(Lake, "connect", way)
        with Lookup(lake) as found:
            assert found.spent_usd() == n + 1.0


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "call_key": st.sampled_from("abcd"),
            "status": st.sampled_from(["ok", "ok", "timeout", "bad_request", "interrupted"]),
            "finish_reason": st.sampled_from(["stop", "length", None]),
            "max_tokens": st.sampled_from([10, 20]),
            "attempt": st.sampled_from([0, 1, 2]),
            "api_base": st.sampled_from(["", "there"]),
            "source_key": st.sampled_from(["1", "2"]),
            "segment": st.sampled_from(["s1", "s2"]),
        }
    ),
    max_size=10,
)


@settings(deadline=None, max_examples=30)
@given(ROWS, st.booleans())
def test_what_is_known_is_what_one_call_at_a_time_finds(tmp_path_factory, found, renew):
    lake = Lake(Path(tmp_path_factory.mktemp("ledger")))
    start = datetime(2026, 1, 1)
    for n, one in enumerate(found):
        one |= {"reply": f"r{n}", "error": f"e{n}", "created_at": start + timedelta(n), "purpose": "p", **FACTS}
    part = lake.write_part("teacher_calls", found)
    lake.commit("teacher_calls", [part], fingerprint=stage.Fingerprint.of(n=1), code_version="1", complete=False)
    asked = [("a", "1"), ("b", "2"), ("a", "2"), ("e", "1")]
    wanted = [
        {"place": 3 * n, "call_key": key, "source_key": source, "purpose": "p"} for n, (key, source) in enumerate(asked)
    ]
    with Lookup(lake) as ledger:
        facts = None if renew else FACTS
        with ledger.look_up(pa.Table.from_pylist(wanted, schema=known.WANTED), facts, "") as joined:
            for wish, (key, source) in zip(wanted, asked, strict=True):
                assert _plain(joined.at(wish["place"])) == _expected(found, key, source, renew), key


def _plain(one: known.Known) -> tuple:
    tried = {allowed: (t.count, t.kind, t.message, bool(t.hopeless)) for allowed, t in one.tried.items()}
    return one.reply.text if one.reply else None, tried


def _expected(found: list[dict], key: str, source: str, renew: bool) -> tuple:
    """The same, said in Python for one call."""

    def best(of: str) -> dict | None:
        replies = [r for r in found if r["call_key"] == of and r["status"] == "ok"]
        order = lambda r: (r["finish_reason"] == "length", -r["max_tokens"], r["created_at"])  # noqa: E731
        return min(replies, key=order, default=None)

    reply, older = best(key), []
    if reply is None and not renew:
        same = [r for r in found if r["source_key"] == source and r["call_key"] != key]
        keys = sorted({r["call_key"] for r in same})
        newest = {
            k: max((r["created_at"] for r in same if r["call_key"] == k and r["status"] == "ok"), default=datetime.min)
            for k in keys
        }
        older = sorted(keys, key=lambda k: newest[k], reverse=True)
        replies = [r for k in older if (r := best(k))]
        cut = lambda r: r["max_tokens"] if r["finish_reason"] == "length" else math.inf  # noqa: E731
        reply = max(replies, key=cut, default=None)
    if reply and reply["finish_reason"] != "length":
        return reply["reply"], {}
    answered = {r["segment"] for r in found if r["status"] == "ok"}
    tried: dict[int, tuple] = {}
    for k, allowed in itertools.product([key, *older], (10, 20)):
        failed = [
            r
            for r in found
            if (r["call_key"], r["max_tokens"], r["api_base"]) == (k, allowed, "")
            and r["status"] not in ("ok", "interrupted")
            and r["attempt"] > 0
        ]
        if failed:
            dead = any(r["status"] == "bad_request" and r["segment"] in answered for r in failed)
            count, kind, message, hopeless = tried.get(allowed, (0, failed[-1]["status"], failed[-1]["error"], False))
            tried[allowed] = (count + len(failed), kind, message, hopeless or dead)
    return reply["reply"] if reply else None, tried
