"""The stage student_scores: what is paid again and what is not, failures beside good rows, kills, several devices."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from student_lake import RECORDS, four, make_lake, put_candidates, scores_of, settings_for
from tiny_student import make_tiny_student

from srt_assets.core.errors import StageError, UserError
from srt_assets.core.lake import Lake
from srt_assets.core.scoring import pace, workers
from srt_assets.core.scoring import run as scoring_run
from srt_assets.core.scoring import stage as scores
from srt_assets.core.scoring.describe import describe, faults
from srt_assets.core.scoring.encoding import Texts
from srt_assets.core.selection import decide
from srt_assets.core.students import checkpoints
from srt_assets.core.tables import PASSES

torch.set_num_threads(1)


def test_a_second_run_computes_nothing(home, monkeypatch):
    lake = make_lake(home)
    first = scores.STAGE.run(settings_for(), lake, "tiny")
    assert first.stats["candidates_scored"] == 4 * len(RECORDS)
    monkeypatch.setattr(workers, "score_chunks", lambda *a: pytest.fail("a forward pass"))
    second = scores.STAGE.run(settings_for(), lake, "tiny")
    assert second.cached and second.manifest.content_hash == first.manifest.content_hash
    assert faults(lake, "tiny") == {"unsound_rows": 0, "candidates_without_row": 0, "double_rows": 0}


def test_equal_passes_are_computed_once(home):
    lake = make_lake(home)
    stats = scores.STAGE.run(settings_for(), lake, "tiny").stats
    # Two of four candidates share an instruction, so their pass over it alone is one.
    assert stats["passes"] == 14 * len(RECORDS)
    assert stats["passes_shared"] == 2 * len(RECORDS)


def test_a_changed_record_pays_only_its_own(home):
    lake = make_lake(home)
    scores.STAGE.run(settings_for(), lake, "tiny")
    before = scores_of(lake)
    changed = ("Name a tree.", "", "Oak.")
    put_candidates(lake, [row for r in [*RECORDS[1:], changed] for row in four(r)])
    outcome = scores.STAGE.run(settings_for(), lake, "tiny")
    assert outcome.stats["candidates_scored"] == 4
    assert outcome.stats["candidates_reused"] == 4 * (len(RECORDS) - 1)
    after = scores_of(lake)
    assert len(after) == len(before)
    assert sum(after[k] == before.get(k) for k in after) == len(after) - 4


def test_another_way_of_scoring_pays_again_and_a_new_student_pays_only_passes(home):
    lake = make_lake(home)
    scores.STAGE.run(settings_for(), lake, "tiny")
    assert scores.STAGE.run(settings_for(template="alpaca"), lake, "tiny").stats["candidates_reused"] == 0
    assert scores.STAGE.run(settings_for(max_length=300), lake, "tiny").stats["candidates_reused"] == 0
    checkpoints.add(settings_for(), lake, str(make_tiny_student(home / "other", seed=1)), "other")
    assert scores.STAGE.run(settings_for(), lake, "other").stats["candidates_scored"] == 4 * len(RECORDS)
    assert lake.partitions("student_scores") == ["student=other", "student=tiny"]


def test_bad_records_have_a_status_and_leave_their_neighbours_alone(home):
    bad = [
        ("Say nothing.", "", "   "),
        ("", "", "An answer to nothing."),
        ("Broken \ud800 text", "", "Still an answer."),
        ("Too long. " * 300, "", "Yes."),
    ]
    settings = settings_for(max_length=600)
    alone = make_lake(home / "alone", settings=settings)
    scores.STAGE.run(settings, alone, "tiny")
    rows = [row for r in RECORDS for row in four(r)] + [row for r in bad for row in four(r, bad=("reflected_both",))]
    rows = [r for r in rows if "\ud800" not in (r["instruction"] or "")]
    lake = make_lake(home, rows, settings)
    scores.STAGE.run(settings, lake, "tiny")
    found = scores_of(lake)
    for key, row in scores_of(alone).items():
        for name in PASSES:
            assert found[key][f"sum_nll_{name}"] == pytest.approx(row[f"sum_nll_{name}"], rel=1e-5)
    by_response = {r["content_key"]: r for r in rows if r["candidate"] == "original"}
    statuses = {
        by_response[row["content_key"]]["response"]: row
        for (_, candidate), row in found.items()
        if candidate == "original" and row["content_key"] in by_response
    }
    assert statuses["   "]["status_response"] == "empty_target"
    assert statuses["   "]["status_instruction"] == "ok"
    assert statuses["An answer to nothing."]["status_instruction"] == "empty_target"
    assert statuses["An answer to nothing."]["status_response"] == "ok"
    assert statuses["Yes."]["status_response_given_prompt"] == "prompt_too_long"
    assert statuses["Yes."]["sum_nll_response"] is None
    assert statuses["Yes."]["truncated_instruction_given_response"]
    not_ok = [row for row in found.values() if row["content_key"] is None]
    assert not_ok and all(row[f"status_{p}"] == "candidate_not_ok" for row in not_ok for p in PASSES)
    assert faults(lake, "tiny")["unsound_rows"] == 0
    numbers = describe(lake, "tiny").numbers
    assert numbers["passes_candidate_not_ok"] == 4 * len(not_ok)
    assert numbers["candidates_truncated"] > 0


@pytest.mark.slow
def test_two_workers_give_the_same_scores(home, hostile_folder):
    lake = make_lake(home)
    scores.STAGE.run(settings_for(), lake, "tiny")
    one = scores_of(lake)
    other_lake = make_lake(home / "two")
    outcome = scores.STAGE.run(settings_for(devices="cpu,cpu"), other_lake, "tiny")
    assert outcome.stats["devices"] == "cpu,cpu"
    for key, row in scores_of(other_lake).items():
        for name in PASSES:
            assert row[f"sum_nll_{name}"] == pytest.approx(one[key][f"sum_nll_{name}"], rel=1e-5)


def test_a_dead_worker_is_an_error_and_what_was_scored_is_kept(home, monkeypatch):
    lake = make_lake(home)
    whole = workers.score_chunks

    def dies(spec, devices, chunks, tick):
        ones = ([item] for chunk in chunks for item in chunk)
        for done, scored in enumerate(whole(spec, devices, ones, tick), start=1):
            yield scored
            if done == 12:
                raise StageError("a scoring worker died (exit code -9)", "run again")

    monkeypatch.setattr(workers, "score_chunks", dies)
    with pytest.raises(StageError):
        scores.STAGE.run(settings_for(), lake, "tiny")
    unfinished = lake.manifest("student_scores", "student=tiny")
    assert unfinished is not None and not unfinished.complete
    monkeypatch.setattr(workers, "score_chunks", whole)
    outcome = scores.STAGE.run(settings_for(), lake, "tiny")
    assert outcome.stats["candidates_scored"] == 4 * len(RECORDS) - 12


@pytest.mark.slow
def test_a_worker_killed_from_outside_is_an_error_and_what_was_scored_is_kept(home, monkeypatch):
    lake = make_lake(home)
    monkeypatch.setattr(pace, "_FIRST_CHARACTERS", 1)
    monkeypatch.setattr(pace.Pace, "learn", lambda *a: None)

    def kill(done: int, total: int, unit: str = "rows", **facts: object) -> None:
        for worker in multiprocessing.active_children() if done else ():
            os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(StageError, match=r"worker died \(exit code -9\).*\n?.*run again"):
        scores.STAGE.run(settings_for(devices="cpu,cpu"), lake, "tiny", kill)
    unfinished = lake.manifest("student_scores", "student=tiny")
    assert unfinished is not None and not unfinished.complete and 4 <= unfinished.rows < 4 * len(RECORDS)
    outcome = scores.STAGE.run(settings_for(), lake, "tiny")
    assert outcome.stats["candidates_reused"] == unfinished.rows
    assert outcome.stats["candidates_scored"] == 4 * len(RECORDS) - unfinished.rows


@pytest.mark.parametrize("characters_per_s", [200, 5_000, 1_000_000])
def test_rows_are_put_down_within_half_a_minute_on_any_device(characters_per_s):
    """The clock is simulated: chunks are cut, take their time and teach the pace, one being cut ahead."""
    learned = pace.Pace()
    texts = ((str(n), str(n), Texts("i" * 100, "", "r" * 700)) for n in range(100_000))
    now = flushed = longest = 0.0
    before = None
    for chunk in itertools.islice(pace.chunks(texts, learned), 60):
        if before:
            seconds = before / characters_per_s
            now += seconds
            learned.learn(before, seconds)
            if now - flushed >= scoring_run._FLUSH_S:
                longest, flushed = max(longest, now - flushed), now
        before = sum(len(text) for item in chunk for text in item.texts)
    assert 0 < longest <= 30


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from student_lake import settings_for
from srt_assets.core.lake import Lake
from srt_assets.core.scoring import pace, run, stage as scores
run._FLUSH_S = 0.0
pace._FIRST_CHARACTERS = 1
pace.Pace.learn = lambda *a: time.sleep(0.2)
scores.STAGE.run(settings_for(), Lake(Path({home!r})), "tiny")
"""


@pytest.mark.slow
def test_after_a_kill_scoring_goes_on_from_there(home):
    lake = make_lake(home)
    script = KILLED.format(tests=str(Path(__file__).parent), home=str(home))
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            manifest = lake.manifest("student_scores", "student=tiny")
            if manifest and len(manifest.parts) > 3:
                break
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    unfinished = lake.manifest("student_scores", "student=tiny")
    assert unfinished is not None and not unfinished.complete and unfinished.rows >= 4
    kept = scores_of(lake)
    outcome = scores.STAGE.run(settings_for(), lake, "tiny")
    assert outcome.stats["candidates_reused"] >= unfinished.rows
    assert outcome.stats["candidates_scored"] == 4 * len(RECORDS) - unfinished.rows
    found = scores_of(lake)
    assert len(found) == 4 * len(RECORDS)
    assert all(found[key] == row for key, row in kept.items())


def test_a_long_run_does_not_pile_up_parts(home, monkeypatch):
    lake = make_lake(home)
    monkeypatch.setattr(scoring_run, "_FLUSH_S", 0.0)
    monkeypatch.setattr(scoring_run, "_MOST_PARTS", 2)
    monkeypatch.setattr(pace, "CHUNK_S", 0.0)
    commit, parts, rows = lake.commit, [], []

    def noted(table, names, **more):
        manifest = commit(table, names, **more)
        parts.append(len(names))
        rows.append(manifest.rows)
        return manifest

    monkeypatch.setattr(lake, "commit", noted)
    scores.STAGE.run(settings_for(), lake, "tiny")
    assert len(parts) > 3 and max(parts) == 2
    assert rows == sorted(rows) and rows[-1] == 4 * len(RECORDS)
    assert faults(lake, "tiny") == {"unsound_rows": 0, "candidates_without_row": 0, "double_rows": 0}


def test_missing_candidates_and_unknown_students_say_what_to_do(home):
    lake = Lake(home)
    with pytest.raises(UserError, match="srt run reflected_instructions"):
        scores.STAGE.run(settings_for(), lake, "tiny")
    lake = make_lake(home)
    with pytest.raises(UserError, match="srt students add"):
        scores.STAGE.run(settings_for(), lake, "nobody")
    with pytest.raises(UserError, match="does not have"):
        scores.STAGE.run(settings_for(devices="cuda:99"), lake, "tiny")


def test_progress_tells_rates_and_time_left(home):
    lake = make_lake(home)
    seen: list[tuple[int, int, str, dict]] = []
    scores.STAGE.run(
        settings_for(), lake, "tiny", lambda done, total, unit="rows", **facts: seen.append((done, total, unit, facts))
    )
    done, total, unit, facts = seen[-1]
    assert (done, total, unit) == (len(RECORDS), len(RECORDS), "records")
    assert {"tokens_per_s", "records_per_s", "eta_s"} <= facts.keys()


def test_candidates_that_change_while_they_are_scored_are_scored_next_time(home, monkeypatch):
    lake = make_lake(home, [row for r in RECORDS[:3] for row in four(r)])
    count = scoring_run.ScoringRun.stats

    def changed_meanwhile(self):
        put_candidates(lake, [row for r in [*RECORDS[:2], ("Name a tree.", "", "Oak.")] for row in four(r)])
        return count(self)

    with monkeypatch.context() as during:
        during.setattr(scoring_run.ScoringRun, "stats", changed_meanwhile)
        scores.STAGE.run(settings_for(), lake, "tiny")
    with pytest.raises(StageError, match="changed since student tiny scored them"):
        decide.STAGE.run(settings_for(), lake, student="tiny")
    second = scores.STAGE.run(settings_for(), lake, "tiny")
    assert not second.cached and second.stats["candidates_scored"] == 4
    assert not decide.STAGE.run(settings_for(), lake, student="tiny").cached
