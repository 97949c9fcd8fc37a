"""The whole graph through Dagster on a tiny student and a fake teacher: twice, then with one record changed."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from fake_openai import FakeOpenAI, Plan
from tiny_student import make_tiny_student

from srt_assets.core.lake import Lake
from srt_assets.core.scoring import scorer
from srt_assets.core.status import standings
from srt_assets.core.students import checkpoints
from srt_assets.core.teacher import prompts, stage
from srt_assets.definitions import build_defs
from srt_assets.defs import names
from srt_assets.defs.automation import nightly
from srt_assets.defs.execute import materialize
from srt_assets.settings import Dataset, Project, Selection, Settings, Student, Teacher, Training

RECORDS = [
    {"instruction": f"Explain thing {n}.", "input": "with care" if n % 3 else "", "output": f"Thing {n} is a thing."}
    for n in range(8)
]


class Site:
    """A project with its own instance, home and fake teacher."""

    def __init__(self, root: Path, fake: FakeOpenAI, instance: dg.DagsterInstance) -> None:
        self.fake, self.instance = fake, instance
        self.data = root / "records.json"
        self.write(RECORDS)
        self.settings = Settings(
            project=Project(home=root / "home"),
            datasets=(Dataset(name="small", path=str(self.data)),),
            teacher=Teacher(model="openai/fake", api_base=fake.base),
            student=Student(max_length=512),
            selection=Selection(policy="reflected_all"),
            training=Training(max_steps=2, batch_size=2, max_length=512, held_out=0.3),
        )
        self.lake = Lake(self.settings.home)
        self.add("tiny", seed=0)

    def write(self, rows: list) -> None:
        self.data.write_text(json.dumps(rows))

    def add(self, slug: str, seed: int) -> None:
        source = make_tiny_student(self.data.parent / f"{slug}-checkpoint", seed=seed)
        checkpoints.add(self.settings, self.lake, str(source), slug)
        self.instance.add_dynamic_partitions(names.students.name or "", [slug])

    def run(self, *students: str) -> int:
        """Bring everything up to date; gives the number of calls the teacher was asked."""
        before = len(self.fake.seen)
        defs = build_defs(self.settings)
        for assets, student in ((names.TEACHER_SIDE, None), *((names.STUDENT_SIDE, s) for s in students)):
            result = materialize(defs, self.instance, assets, student)
            assert result.exit_code == 0, result.errors
        return len(self.fake.seen) - before

    def nightly(self) -> tuple[list[str | None], str | None]:
        """Tick the schedule: the students it requests a run for, and why it requests none."""
        context = dg.build_schedule_context(self.instance, scheduled_execution_time=datetime(2030, 1, 1, 2, tzinfo=UTC))
        ticked = nightly(self.settings)(context)
        if isinstance(ticked, dg.SkipReason):
            return [], ticked.skip_message
        return [request.partition_key for request in ticked], None

    def rows(self, sql: str) -> list[tuple]:
        con = self.lake.connect()
        try:
            return con.execute(sql).fetchall()
        finally:
            con.close()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-nobody")
    # A tick of the schedule opens the instance again: it must be on disk.
    with FakeOpenAI(lambda body, nth: Plan()) as fake, dg.instance_for_test() as instance:
        yield Site(tmp_path, fake, instance)


@pytest.fixture
def forward_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sequences given to the scorer, one number a call."""
    seen: list[int] = []
    score = scorer.Scorer.score

    def count(self, passes, *rest, **more):
        seen.append(len(passes))
        return score(self, passes, *rest, **more)

    monkeypatch.setattr(scorer.Scorer, "score", count)
    return seen


def test_from_raw_file_to_checkpoint_and_nothing_twice(site: Site, forward_passes: list[int]) -> None:
    # Three calls a record: Q, A and QA.
    assert site.run("tiny") == 3 * len(RECORDS)
    assert site.rows("SELECT count(*), count(DISTINCT sample_id) FROM candidates") == [(32, 8)]
    assert site.rows("SELECT count(*) FROM student_scores") == [(32,)]
    [(kept, samples)] = site.rows("SELECT count(*) FILTER (kept), count(*) FROM decisions")
    assert kept == samples == 8
    [(path, before, after)] = site.rows("SELECT path, eval_loss_before, eval_loss_after FROM training_runs")
    assert (Path(path) / "model.safetensors").exists() and before > 0 and after > 0
    assert {s.state for s in standings(site.settings, site.lake, ["tiny"])} == {"fresh"}
    assert (site.settings.home / "srt.duckdb").exists()

    asked, why = site.nightly()
    assert asked == [] and why and "up to date" in why

    assert sum(forward_passes) > 0
    forward_passes.clear()
    assert site.run("tiny") == 0
    assert forward_passes == []
    assert site.rows("SELECT count(*) FROM training_runs") == [(1,)]


@pytest.mark.slow
def test_a_changed_record_asks_for_itself_only_and_a_new_student_asks_nobody(site: Site) -> None:
    site.run("tiny")
    fingerprints = dict(site.rows("SELECT sample_id, any_value(content_key) FROM candidates GROUP BY 1"))
    site.write([*RECORDS[:-1], {**RECORDS[-1], "output": "Another thing altogether."}])
    assert site.run("tiny") == 3
    now = dict(site.rows("SELECT sample_id, any_value(content_key) FROM candidates GROUP BY 1"))
    assert len(set(now) & set(fingerprints)) == 7

    site.add("second", seed=1)
    assert site.nightly() == (["second"], None), "only the student that has something missing"
    assert site.run("tiny", "second") == 0
    assert site.rows("SELECT student, count(*) FROM decisions GROUP BY 1 ORDER BY 1") == [("second", 8), ("tiny", 8)]


@pytest.mark.slow
def test_a_newer_program_alone_pays_nobody_and_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.run("tiny")
    monkeypatch.setattr(stage, "PROMPT_VERSION", "newer")
    monkeypatch.setattr(prompts, "PROMPT_VERSION", "newer")
    monkeypatch.setitem(prompts.CRITERIA, "instruction", "Another way to put it.\n")
    asked, why = site.nightly()
    assert asked == [] and why and "reflected_instructions was made by an older program (prompts)" in why
    assert site.run("tiny") == 0
    found = standings(site.settings, site.lake, ["tiny"])
    assert {s.state for s in found} == {"fresh"}
    assert [s.asset for s in found if "--renew" in s.why] == ["reflected_instructions", "reflected_responses"]
    # Another student is no reason to pay either.
    site.add("second", seed=1)
    assert site.nightly()[0] == ["second"] and site.run("second") == 0
    # Whoever wants the new prompts says so, for the asset meant: its upstream is not paid again with it.
    before = len(site.fake.seen)
    done = materialize(
        build_defs(site.settings), site.instance, names.TEACHER_SIDE, None, renew=[names.TEACHER_SIDE[1]]
    )
    assert done.exit_code == 0 and len(site.fake.seen) - before > len(RECORDS)
    assert not any("--renew" in s.why for s in standings(site.settings, site.lake, []))


def test_a_teacher_that_is_gone_is_one_message_with_the_remedy(site: Site) -> None:
    gone = site.settings.model_copy(update={"teacher": Teacher(model="openai/fake", api_base="http://127.0.0.1:9/v1")})
    result = materialize(build_defs(gone), site.instance, names.TEACHER_SIDE, None)
    assert result.exit_code == 1
    [error] = result.errors
    assert "127.0.0.1:9" in error and "->" in error and "Traceback" not in error
    assert site.rows("SELECT count(*) FROM raw_records") == [(8,)], "what was done before is kept"
