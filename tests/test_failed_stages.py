"""A stage that fails says so in `srt status` until it has succeeded, whichever stage and whatever the error."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from student_lake import make_lake, settings_for

from srt_assets.core.lake import Lake
from srt_assets.core.records import raw
from srt_assets.core.status import standings
from srt_assets.core.student import scores
from srt_assets.defs import names
from srt_assets.defs.assets import asset_of
from srt_assets.defs.resources import LakeResource
from srt_assets.settings import Settings


def state_of(settings: Settings, lake: Lake, asset: str, students: list[str]) -> tuple[str, str]:
    return next((s.state, s.why) for s in standings(settings, lake, students) if s.asset == asset)


def test_a_failed_stage_is_failed_until_it_succeeds(home: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text("[{")
    settings = Settings.model_validate(
        {"project": {"home": home}, "datasets": [{"name": "d", "path": str(data)}], "student": {"devices": "cpu"}}
    )
    resources = {"lake": LakeResource(settings)}
    assert not dg.materialize([asset_of(raw.STAGE)], resources=resources, raise_on_error=False).success
    state, why = state_of(settings, Lake(home), "raw_dataset", [])
    assert state == "failed" and "data.json" in why
    data.write_text('[{"instruction": "Name a tree.", "input": "", "output": "Oak."}]')
    assert dg.materialize([asset_of(raw.STAGE)], resources=resources).success
    assert state_of(settings, Lake(home), "raw_dataset", []) == ("fresh", "")


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), MemoryError("no more")])
def test_an_error_nobody_foresaw_counts_too(home: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: object) -> None:
        raise error

    lake = make_lake(home)
    settings = settings_for().model_copy(update={"project": Settings().project.model_copy(update={"home": home})})
    monkeypatch.setattr(scores.StudentScores, "make", fails)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(names.students.name or "", ["tiny"])
        done = dg.materialize(
            [
                dg.AssetSpec("reflected_responses"),
                dg.AssetSpec(names.STUDENT_CHECKPOINT, partitions_def=names.students),
                asset_of(scores.STAGE),
            ],
            partition_key="tiny",
            instance=instance,
            resources={"lake": LakeResource(settings)},
            raise_on_error=False,
        )
    assert not done.success
    state, why = state_of(settings, lake, "student_scores", ["tiny"])
    assert state == "failed" and str(error) in why
