"""Which records low precision could decide wrongly: asked of the rule itself, for the policy that is active."""

from __future__ import annotations

import pytest
from student_lake import four, put_candidates, settings_for

from srt_assets.core.hashing import sample_id
from srt_assets.core.lake import Lake
from srt_assets.core.selection.policies import policy_rows
from srt_assets.core.student import precision
from srt_assets.core.student.store import Store, Way
from srt_assets.core.tables import PASSES
from srt_assets.settings import Selection

NAMES = ("original", "reflected_instruction", "reflected_response", "reflected_both")
# log IFD, log r-IFD and L(y|x) of the four: no comparison or limit of any policy is closer than 0.4.
FAR = {
    "original": (-2.0, -0.5, 4.0),
    "reflected_instruction": (-1.5, -1.0, 3.0),
    "reflected_response": (-1.0, -1.5, 2.0),
    "reflected_both": (-0.5, -2.0, 1.0),
}
CASES = {
    "far": FAR,
    "far too": FAR,
    "first comparison": FAR | {"reflected_instruction": (-1.98, -1.0, 3.0)},
    "second comparison": FAR | {"reflected_both": (-0.5, -1.02, 1.0)},
    "ifd limit": FAR | {"reflected_both": (-0.02, -2.0, 1.0)},
    "r_ifd limit": FAR | {"reflected_instruction": (-1.5, 0.5, 3.0), "reflected_both": (-0.5, 0.02, 1.0)},
    "perplexity": FAR | {"reflected_instruction": (-1.5, -1.0, 3.99)},
    "loser at the limit": FAR | {"reflected_response": (-0.02, -1.5, 2.0)},
}
EXPECTED = {
    Selection(): {"first comparison", "second comparison", "ifd limit", "r_ifd limit"},
    Selection(policy="perplexity"): {"perplexity"},
    Selection(policy="longest"): set(),
    Selection(policy="reflected_all"): set(),
    # There the reflected instruction already lost, so the pair at the limit is not the winner.
    Selection(policy="r_ifd_only"): {"second comparison"},
    Selection(filter_before_compare=True): {
        "first comparison",
        "second comparison",
        "ifd limit",
        "r_ifd limit",
        "loser at the limit",
    },
}


def rows_of(case: str, values: dict, dtype: str, shift: float = 0.0) -> list[dict]:
    rows = []
    for row in four((case, "", "It is.")):
        ifd, r_ifd, loss = values[row["candidate"]]
        sums = (loss - ifd + 5, loss + 5, 9.0, 9.0 + r_ifd)
        if row["candidate"] == "reflected_instruction":
            sums = (sums[0], sums[1] + shift, sums[2], sums[3] + shift)
        facts = {"template": "vicuna", "protocol": "aligned", "max_length": 99, "dtype": dtype}
        numbers = {f"sum_nll_{p}": s for p, s in zip(PASSES, sums, strict=True)}
        numbers |= {f"n_tokens_{p}": 1 for p in PASSES} | {f"status_{p}": "ok" for p in PASSES}
        rows.append({"content_key": row["content_key"], **facts, **numbers})
    return rows


@pytest.mark.parametrize("selection", EXPECTED, ids=lambda s: f"{s.policy}{'-filter' * s.filter_before_compare}")
def test_what_is_close_is_what_the_active_policy_compares(home, monkeypatch, selection):
    monkeypatch.setattr(precision, "MEASURED_RECORDS", 1)
    lake = Lake(home)
    put_candidates(lake, [row for case in CASES for row in four((case, "", "It is."))])
    settings = settings_for()
    store = Store(lake, "tiny", Way("f", "vicuna", "aligned", 99, "1", ("float32", "bfloat16")))
    store.remember([row for case, values in CASES.items() for row in rows_of(case, values, "bfloat16")])
    name_of = {sample_id(case, "", "It is."): case for case in CASES}
    asked: list[set[str]] = []

    def rescore(samples: list[str]) -> None:
        cases = {name_of[sample] for sample in samples}
        # The one that is measured moves by 0.05 in fp32, so that is the error; the others stay.
        shift = 0.05 if not asked else 0.0
        asked.append(cases)
        store.remember([row for case in cases for row in rows_of(case, CASES[case], "float32", shift)])

    found = precision.settle(store, policy_rows(selection, settings.project.seed, "tiny"), rescore)
    store.close()
    (measured,), close = asked
    assert found["low_precision_records"] == len(CASES)
    if selection.policy in ("selective", "perplexity", "r_ifd_only"):
        assert found["low_precision_error"] == pytest.approx(0.05)
    assert close == EXPECTED[selection] - {measured}
    assert found["rescored_in_fp32"] == len(close) + 1
