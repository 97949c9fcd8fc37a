"""Where every asset stands for every student: fresh, changed (and why), missing or failed. Reads manifests only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from srt_assets.core.errors import StageError, UserError
from srt_assets.core.lake import Lake, Manifest
from srt_assets.settings import Settings

Wanted = Callable[[Settings, Lake, str], str]


@dataclass(frozen=True)
class Stage:
    """An asset's place in the lake, and how to ask which fingerprint it should have now."""

    asset: str
    table: str
    partition: str | None
    per_student: bool
    wanted: Wanted

    def partition_of(self, student: str) -> str | None:
        return f"student={student}" if self.per_student else self.partition


@dataclass(frozen=True)
class Standing:
    """`state` is fresh, changed, missing or failed; `why` names what changed, is missing or went wrong."""

    asset: str
    student: str | None
    state: str
    why: str = ""


def stages() -> list[Stage]:
    """The graph's stages in order. Imports happen here, so that `srt --help` does not pay for them."""
    from srt_assets.core.records import raw
    from srt_assets.core.selection import decide
    from srt_assets.core.student import checkpoints, scores
    from srt_assets.core.teacher import instructions, responses
    from srt_assets.core.training import stage as training

    return [
        Stage("raw_dataset", "raw_records", None, False, lambda s, lake, _: raw.wanted(s, lake)),
        Stage(
            "reflected_instructions",
            "candidates",
            "asset=reflected_instructions",
            False,
            lambda s, lake, _: instructions.wanted(s, lake),
        ),
        Stage(
            "reflected_responses",
            "candidates",
            "asset=reflected_responses",
            False,
            lambda s, lake, _: responses.wanted(s, lake),
        ),
        Stage("student_checkpoint", "students", None, True, checkpoints.wanted),
        Stage("student_scores", "student_scores", None, True, scores.wanted),
        Stage("selected_set", "selected_set", None, True, decide.wanted),
        Stage("finetuned_checkpoint", "training_runs", None, True, training.wanted),
    ]


def standings(settings: Settings, lake: Lake, students: list[str]) -> list[Standing]:
    """Teacher side first, then each student's side. What rests on something changed is changed too."""
    found: list[Standing] = []
    shared = [stage for stage in stages() if not stage.per_student]
    own = [stage for stage in stages() if stage.per_student]
    upstream = _walk(settings, lake, shared, None, None, found)
    for student in students:
        _walk(settings, lake, own, student, upstream, found)
    return found


def _walk(
    settings: Settings, lake: Lake, line: list[Stage], student: str | None, upstream: str | None, found: list[Standing]
) -> str | None:
    for stage in line:
        standing = _standing(settings, lake, stage, student)
        if standing.state == "fresh" and upstream and stage.asset != "student_checkpoint":
            standing = Standing(stage.asset, student, "changed", f"{upstream} is not up to date")
        found.append(standing)
        if standing.state != "fresh" and not upstream:
            upstream = stage.asset
    return upstream


def _standing(settings: Settings, lake: Lake, stage: Stage, student: str | None) -> Standing:
    partition = stage.partition_of(student or "")
    try:
        want = stage.wanted(settings, lake, student or "")
    except (UserError, StageError) as error:
        manifest = lake.manifest(stage.table, partition)
        return Standing(stage.asset, student, "changed" if manifest else "missing", error.message)
    if lake.is_current(stage.table, want, partition):
        return Standing(stage.asset, student, "fresh")
    failure = lake.failure(stage.table, partition)
    if failure:
        return Standing(stage.asset, student, "failed", failure["message"])
    manifest = lake.manifest(stage.table, partition)
    if manifest is None:
        return Standing(stage.asset, student, "missing")
    return Standing(stage.asset, student, "changed", what_changed(manifest, want))


def remember_failure(settings: Settings, lake: Lake, asset: str, student: str, message: str) -> None:
    """Record that an asset's stage failed; its next commit makes that forgotten."""
    stage = next(stage for stage in stages() if stage.asset == asset)
    try:
        want: str = stage.wanted(settings, lake, student)
    except (UserError, StageError):  # what failed is what it would be made of
        want = ""
    lake.record_failure(stage.table, stage.partition_of(student), want, message)


def what_changed(manifest: Manifest, want: str) -> str:
    """The names of the inputs that differ from those the content was made of, e.g. `template, candidates`."""
    now: dict[str, Any] = getattr(want, "facts", {})
    if manifest.fingerprint == want:
        return "unfinished" if not manifest.complete else "files are gone"
    import json

    def same(a: Any, b: Any) -> bool:
        return json.dumps(a, sort_keys=True, default=str) == json.dumps(b, sort_keys=True, default=str)

    keys = sorted(k for k in {*now, *manifest.inputs} if not same(now.get(k), manifest.inputs.get(k)))
    return ", ".join(keys) or "inputs"
