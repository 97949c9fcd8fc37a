"""What a stage hands back: the parts it has made, how its run ended, what people look at first, what its checks say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from srt_assets.core.hashing import Fingerprint
from srt_assets.core.manifest import Manifest

Facts = Mapping[str, int | float | str]


@dataclass(frozen=True)
class Made:
    """Parts by table, to be committed, and numbers about the work. `made_from`: where that differs from what was wanted
    when the work began, because it took hours or because it decides what counts.
    """

    parts: Mapping[str, Sequence[str]]
    stats: Facts = field(default_factory=dict)
    made_from: Fingerprint | None = None


@dataclass(frozen=True)
class Outcome:
    """`cached` says that the artefact was already right and no work was done; `stats` counts the work of this run;
    `note`: what else people should know, such as that an older program made it.
    """

    manifest: Manifest
    cached: bool
    stats: Facts = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Description:
    """A look at an artefact: plain numbers (plotted over time), up to five rows, one histogram (title, values), one
    plot of lines by name (axis labels, points), further small tables by name.
    """

    numbers: Facts
    sample: list[dict] = field(default_factory=list)
    histogram: tuple[str, list[float]] | None = None
    lines: tuple[str, str, Mapping[str, Sequence[tuple[int, float]]]] | None = None
    tables: Mapping[str, list[dict]] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A question about an artefact that SQL cannot ask. `blocking`: what rests on the artefact waits for a yes.
    `remedy`: what to do about a no.
    """

    name: str
    description: str
    blocking: bool
    remedy: str = "see the facts of the check"


@dataclass(frozen=True)
class Checked:
    """The answer to a `Check`, by its name."""

    name: str
    passed: bool
    facts: Facts
