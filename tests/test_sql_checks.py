"""Every check of dbt_like_sql/tests passes on sound data and fails on data that are bad in the way it looks for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selection_lake import (
    candidate_rows,
    ratios,
    record,
    score_row,
    write_candidates,
    write_records,
    write_scores,
)

from srt_assets.core.hashing import Fingerprint, content_key
from srt_assets.core.lake import Lake
from srt_assets.core.selection import decide
from srt_assets.core.sql import models, views
from srt_assets.settings import Project, Selection, Settings

MINE = "student=tiny"
Rows = list[dict[str, Any]]


def sound(home: Path) -> tuple[Lake, Rows, Rows, Rows]:
    """Twelve records, seven of them kept by selective, with scores that all differ. Gives the rows too, to spoil."""
    lake = Lake(home)
    records = [record(i) | {"input": "one two three four five six"} for i in range(12)]
    candidates = []
    for one in records:
        four = candidate_rows(one)
        for row in four:
            if row["candidate"] in ("reflected_instruction", "reflected_both"):
                row["instruction"] += f" with {one['input']}"
                row["content_key"] = content_key(row["instruction"], row["input"], row["response"])
        candidates += four
    scores = []
    for i, row in enumerate(candidates):
        number = i // 4
        better = row["candidate"] == "reflected_response" and number < 7
        scores.append(score_row("tiny", row, ratios(-0.2 - i / 512, (-0.9 if better else -0.3) - number / 512)))
    return lake, records, candidates, scores


def write(lake: Lake, records: Rows, candidates: Rows, scores: Rows, selection: Selection | None = None) -> Lake:
    write_records(lake, records)
    write_candidates(lake, candidates)
    write_scores(lake, "tiny", scores)
    chosen = Settings(project=Project(home=lake.home), selection=selection or Selection())
    decide.STAGE.run(chosen, lake, student="tiny")
    return lake


def rewrite(lake: Lake, table: str, change: str) -> None:
    """Store a query's result as the content of a table's partition of the student."""
    con = lake.connect()
    part = lake.sink_part(con, change, table, MINE)
    con.close()
    lake.commit(table, [part], fingerprint=Fingerprint.of(of="spoiled"), code_version="1", partition=MINE)


# -- one way to spoil the data for each check


def two_records_of_one_id(home: Path) -> Lake:
    lake, records, candidates, scores = sound(home)
    return write(lake, [*records, records[0]], candidates, scores)


def a_candidate_too_few(home: Path) -> Lake:
    lake, records, candidates, scores = sound(home)
    return write(lake, records, candidates[:-1], scores)


def rewrites_only_shout(home: Path) -> Lake:
    lake, records, candidates, scores = sound(home)
    for row in candidates[:8]:
        if row["candidate"] == "reflected_response":
            row["response"] = row["response"].split(": ")[1].upper() + "!!"
    return write(lake, records, candidates, scores)


def rewrites_change_one_word(home: Path) -> Lake:
    lake, records, candidates, scores = sound(home)
    words = " ".join(f"word{i}" for i in range(40))
    for one, row in zip(records[:2], (candidates[2], candidates[6]), strict=True):
        one["response"] = words
        row["response"] = words.replace("word7 ", "other ")
    return write(lake, records, candidates, scores)


def input_forgotten(home: Path) -> Lake:
    lake, records, candidates, scores = sound(home)
    for row in candidates[:12]:
        if row["candidate"] == "reflected_instruction":
            row["instruction"] = "Do it"
    return write(lake, records, candidates, scores)


def scores_of_other_texts(home: Path) -> Lake:
    lake, records, candidates, scores = sound(home)
    scores[5]["content_key"] = "of texts that were"
    return write(lake, records, candidates, scores)


def scores_all_equal(home: Path) -> Lake:
    lake, records, candidates, _ = sound(home)
    return write(lake, records, candidates, [score_row("tiny", c, ratios(-0.5, -0.5)) for c in candidates])


def scores_mostly_missing(home: Path) -> Lake:
    lake, records, candidates, scores = sound(home)
    missing = [score_row("tiny", c, (None, None, None, None)) for c in candidates[:32]]
    return write(lake, records, candidates, missing + scores[32:])


def scores_mostly_above_one(home: Path) -> Lake:
    lake, records, candidates, _ = sound(home)
    high = [score_row("tiny", c, ratios(0.2 + i / 64, -0.2 - i / 64)) for i, c in enumerate(candidates)]
    return write(lake, records, candidates, high)


def a_verdict_lost(home: Path) -> Lake:
    lake = write(*sound(home))
    rewrite(lake, "decisions", "SELECT * FROM decisions ORDER BY sample_id LIMIT 11")
    return lake


def a_kept_row_lost(home: Path) -> Lake:
    lake = write(*sound(home))
    rewrite(lake, "selected_set", "SELECT * FROM selected_set WHERE position > 0")
    return lake


def a_kept_row_twice(home: Path) -> Lake:
    lake = write(*sound(home))
    rewrite(lake, "selected_set", "SELECT * REPLACE (min(sample_id) OVER () AS sample_id) FROM selected_set")
    return lake


def kept_above_the_limit(home: Path) -> Lake:
    lake = write(*sound(home))
    rewrite(lake, "decisions", "SELECT * REPLACE (CASE WHEN kept THEN 0.0 ELSE log_ifd END AS log_ifd) FROM decisions")
    return lake


def kept_without_a_number(home: Path) -> Lake:
    lake = write(*sound(home))
    rewrite(lake, "decisions", "SELECT * REPLACE (NULL AS log_r_ifd) FROM decisions")
    return lake


def few_kept(home: Path) -> Lake:
    lake, records, candidates, scores = sound(home)
    # From the third record on, no response is better than the one it would replace.
    worse = [score_row("tiny", row, ratios(-0.2 - i / 512, -0.3)) for i, row in enumerate(candidates)]
    return write(lake, records, candidates, [*scores[:12], *worse[12:]])


def one_kept(home: Path) -> Lake:
    return write(*sound(home), Selection(top_k=1))


def none_kept(home: Path) -> Lake:
    lake, records, candidates, _ = sound(home)
    return write(lake, records, candidates, [score_row("tiny", c, (None, None, None, None)) for c in candidates])


SPOILT: list[tuple[str, Callable[[Path], Lake]]] = [
    ("raw_ids_unique", two_records_of_one_id),
    ("four_candidates_a_sample", a_candidate_too_few),
    ("rewrites_differ", rewrites_only_shout),
    ("rewrites_differ", rewrites_change_one_word),
    ("rewrites_keep_the_input", input_forgotten),
    ("scores_belong_to_candidates", scores_of_other_texts),
    ("scores_not_degenerate", scores_all_equal),
    ("scores_not_degenerate", scores_mostly_missing),
    ("scores_not_degenerate", scores_mostly_above_one),
    ("counts_reconcile", a_verdict_lost),
    ("counts_reconcile", a_kept_row_lost),
    ("counts_reconcile", a_kept_row_twice),
    ("kept_are_within_limits", kept_above_the_limit),
    ("kept_are_within_limits", kept_without_a_number),
    ("kept_share_as_in_the_paper", few_kept),
    ("enough_rows_to_train", one_kept),
    ("enough_rows_to_train", none_kept),
]


def test_every_check_has_data_that_it_must_find() -> None:
    assert {name for name, _ in SPOILT} == set(models.load().tests)


def test_sound_data_pass_every_check(tmp_path: Path) -> None:
    lake = write(*sound(tmp_path))
    bad = {name: views.failing_rows(lake, name, "tiny") for name in models.load().tests}
    assert {name: rows for name, (_, rows) in bad.items() if rows} == {}


@pytest.mark.parametrize(("name", "spoil"), SPOILT, ids=[f"{name}-{spoil.__name__}" for name, spoil in SPOILT])
def test_bad_data_are_found(tmp_path: Path, name: str, spoil: Callable[[Path], Lake]) -> None:
    count, rows = views.failing_rows(spoil(tmp_path), name, "tiny")
    assert count and rows


@pytest.mark.parametrize("selection", [Selection(top_k=2), Selection(keep_unreflected=True)])
def test_a_switch_that_was_asked_for_is_no_odd_share(tmp_path: Path, selection: Selection) -> None:
    lake, *rows = sound(tmp_path)
    write(lake, *rows, selection=selection)
    assert views.failing_rows(lake, "kept_share_as_in_the_paper") == (0, [])


def test_other_scripts_are_compared_too(tmp_path: Path) -> None:
    lake, records, candidates, scores = sound(tmp_path)
    for one, four in zip(records, zip(*[iter(candidates)] * 4, strict=True), strict=True):
        one["instruction"], one["response"] = "解释光合作用", "植物把光变成糖"
        four[2]["instruction"], four[2]["response"] = "解释光合作用", "叶绿体吸收光能并合成糖"
    write(lake, records, candidates, scores)
    assert views.failing_rows(lake, "rewrites_differ")[0] == 0
    for row in candidates[2::4]:
        row["response"] = "植物把光变成糖。"
    write(lake, records, candidates, scores)
    assert views.failing_rows(lake, "rewrites_differ")[0] == 1


def test_degenerate_scores_come_with_a_hint(tmp_path: Path) -> None:
    _, rows = views.failing_rows(scores_mostly_above_one(tmp_path), "scores_not_degenerate", "tiny")
    assert len(rows) == 4 and {r["problem"] for r in rows} == {"IFD is above 1 for most: check template and base model"}


def test_every_check_says_what_to_do() -> None:
    assert [t.path.name for t in models.load().tests.values() if not t.facts.get("remedy")] == []
