"""The state of every asset for every student: fresh, changed (and why), missing, failed or damaged."""

from collections.abc import Iterator, Sequence
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
    with one_look():
        found = list(_walk(settings, lake, stages.shared()))
        upstream = next((one.asset for one in found if one.state != "fresh"), None)
        for student in students:
            found += _walk(settings, lake, stages.of_student(), student, upstream)
    return found


def _walk(
    settings: Settings, lake: Lake, line: list[Stage], student: str | None = None, upstream: str | None = None
) -> Iterator[Standing]:
    """The standings of these stages in order. `upstream`: the first asset before them that is not fresh."""
    for stage in line:
        state = stage.state(settings, lake, student or "")
        if state.state == "fresh" and upstream and stage.needs:
            state = State("changed", f"{upstream} is not up to date")
        yield Standing(stage.asset, student, state.state, state.why)
        if state.state != "fresh" and not upstream:
            upstream = stage.asset
