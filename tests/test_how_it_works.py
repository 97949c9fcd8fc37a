"""The page `docs/how-it-works.md`: made by its script, its numbers right, the files it names there."""

import json
import re
import sys
from pathlib import Path

import pytest

from srt_assets.core.hashing import sample_id

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))
import how_it_works  # noqa: E402 - a script beside the page, in no package


@pytest.fixture(scope="module")
def facts() -> dict:
    return json.loads(how_it_works.FACTS.read_text(encoding="utf-8"))


def test_the_page_is_what_its_script_makes(facts: dict) -> None:
    assert how_it_works.PAGE.read_text(encoding="utf-8") == how_it_works.render(facts), "python docs/how_it_works.py"


def test_the_verdict_follows_from_the_losses(facts: dict) -> None:
    decision, (first, second) = facts["decision"], how_it_works.margins(facts)
    assert (first, second) == pytest.approx((decision["margin_1"], decision["margin_2"]), abs=1e-9)
    both = {(True, True): "reflected_both", (True, False): "reflected_instruction"}
    both |= {(False, True): "reflected_response", (False, False): "original"}
    assert decision["chosen"] == both[first > 0, second > 0] and decision["outcome"] == "kept"
    assert how_it_works.log_ifd(facts, decision["chosen"]) < 0
    raw = facts["raw"]
    assert raw["sample_id"] == sample_id(raw["instruction"], raw["input"], raw["response"])
    sample = facts["training"]["sample"]
    assert facts["candidates"][decision["chosen"]]["response"] in sample["learnt"]
    assert facts["candidates"][decision["chosen"]]["instruction"] in sample["given"]


def test_the_files_that_it_names_are_there() -> None:
    named = re.findall(r"\]\((\.\.[^)]+)\)", how_it_works.PAGE.read_text(encoding="utf-8"))
    assert len(named) >= 9 and [path for path in named if not (DOCS / path).is_file()] == []
