"""What a stage hands back: the manifest it left in the lake, and the numbers people look at first."""

from dataclasses import dataclass, field

from srt_assets.core.lake import Manifest


@dataclass(frozen=True)
class Outcome:
    """`cached` says that the artefact was already right and no work was done; `stats` counts the work of this run."""

    manifest: Manifest
    cached: bool
    stats: dict[str, int | float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """A look at an artefact: plain numbers (plotted over time), up to five rows, one histogram (title, values)."""

    numbers: dict[str, int | float | str]
    sample: list[dict] = field(default_factory=list)
    histogram: tuple[str, list[float]] | None = None
