"""The state of every asset for every student: fresh, changed (and why), missing, failed or damaged."""

from collections.abc import Sequence
from dataclasses import dataclass

from srt_assets.core import stages
from srt_assets.core.lake import Lake
from srt_assets.core.one_look import one_look
from srt_assets.core.stage import Stage, State
from srt_assets.settings import Settings


@dataclass(frozen=True)
class Standing:
    """`state` is one of `stage.STATES`; `why` names what changed, is missing or went wrong."""

    asset: str
    student: str | None
    state: str
    why: str = ""


def standings(settings: Settings, lake: Lake, students: Sequence[str]) -> list[Standing]:
    """The shared assets first, then those of each student. An asset is changed if an asset upstream is not fresh."""
    found: list[Standing] = []
    with one_look():
        upstream = _walk(settings, lake, stages.shared(), None, None, found)
        for student in students:
            _walk(settings, lake, stages.of_student(), student, upstream, found)
    return found


def _walk(
    settings: Settings,
    lake: Lake,
    line: list[Stage],
    student: str | None,
    upstream: str | None,
    found: list[Standing],
) -> str | None:
    for stage in line:
        state = stage.state(settings, lake, student or "")
        if state.state == "fresh" and upstream and stage.needs:
            state = State("changed", f"{upstream} is not up to date")
        found.append(Standing(stage.asset, student, state.state, state.why))
        if state.state != "fresh" and not upstream:
            upstream = stage.asset
    return upstream
