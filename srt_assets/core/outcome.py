"""The results of a stage: the parts it has made, how its run ended, a summary for people, and its check results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from srt_assets.core.hashing import Fingerprint
from srt_assets.core.manifest import Manifest

Facts = Mapping[str, int | float | str]


@dataclass(frozen=True)
class Made:
    """Parts by table, to be committed, and numbers about the work. `made_from`: the fingerprint of what they were made
    of, if it differs from the one wanted when the work began.
    """

    parts: Mapping[str, Sequence[str]]
    stats: Facts = field(default_factory=dict)
    made_from: Fingerprint | None = None


@dataclass(frozen=True)
class Outcome:
    """`cached`: the artefact was up to date and no work was done. `stats`: counts of this run's work. `note`: anything
    else people should know, such as that an older program made the artefact.
    """

    manifest: Manifest
    cached: bool
    stats: Facts = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Description:
    """A summary of an artefact: plain numbers (plotted over time), up to five rows, one histogram (title, values), one
    line plot (axis labels, points by line name), further small tables by name.
    """

    numbers: Facts
    sample: list[dict] = field(default_factory=list)
    histogram: tuple[str, list[float]] | None = None
    lines: tuple[str, str, Mapping[str, Sequence[tuple[int, float]]]] | None = None
    tables: Mapping[str, list[dict]] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A check of an artefact that SQL cannot express. `blocking`: later assets are not made if it fails. `remedy`: what
    to do if it fails.
    """

    name: str
    description: str
    blocking: bool
    remedy: str = "see the facts of the check"


@dataclass(frozen=True)
class Checked:
    """The result of the `Check` of this name."""

    name: str
    passed: bool
    facts: Facts
