"""The manifest of a table or partition: its current parts, their inputs, and the program that wrote it.

    _manifest.json        the manifest, with a checksum of itself
    _manifest.copy.json   a copy: `srt repair` restores a damaged manifest from it
    _manifest.v1.json     the manifest of an older program, kept by the upgrade

Reading never rewrites a manifest of an older program; the first write to a home upgrades all of them (`upgrade.py`). A
manifest of a newer program is refused with an error, because guessing its meaning could lose data.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from srt_assets import __version__
from srt_assets.core.errors import Damaged, UserError
from srt_assets.core.files import read_own
from srt_assets.core.hashing import digest
from srt_assets.core.locks import replace_text

NAME = "_manifest.json"
COPY = "_manifest.copy.json"
# When the form of manifests changes, raise this and add a step to _STEPS.
VERSION = 3
# The first version whose manifests have a checksum of themselves.
_CHECKED = 3


@dataclass(frozen=True)
class Manifest:
    """The content of a table or partition. `inputs`: the facts of its fingerprint.

    `content_hash`: hash of the rows in any order, without volatile columns; '' while the content is unfinished.
    `superseded`: replaced parts, with the time (ISO 8601, UTC) since which they are not needed. `sums`: SHA-256 of each
    part's file; empty in manifests of older programs. `program`: the version of srt-assets that wrote it.
    """

    table: str
    partition: str | None
    parts: tuple[str, ...]
    rows: int
    fingerprint: str
    code_version: str
    content_hash: str
    complete: bool
    written_at: str
    stats: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    superseded: dict[str, str] = field(default_factory=dict)
    schema_version: int = VERSION
    program: str = __version__
    sums: dict[str, str] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Replace the manifest in a directory, then its copy."""
        facts = asdict(self)
        text = json.dumps(facts | {"checksum": digest(**facts)}, indent=1)
        replace_text(directory / NAME, text)
        replace_text(directory / COPY, text)


_FIELDS = {f.name: f for f in dataclasses.fields(Manifest)}
_NEEDED = {name for name, f in _FIELDS.items() if f.default is f.default_factory is dataclasses.MISSING}
# From each version to the next.
_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda facts: facts | {"program": "0.1"},
    2: lambda facts: facts | {"sums": {}},
}


def read(directory: Path, name: str = NAME) -> Manifest | None:
    """The manifest in a directory, in this program's form; None if there is none.

    UserError if a newer program wrote it; Damaged if it is unreadable or does not match its checksum.
    """
    path = directory / name
    try:
        facts = json.loads(read_own(path))
    except FileNotFoundError:
        return None
    except ValueError as error:  # no JSON, or no text
        raise Damaged(path, f"{type(error).__name__}: {error}") from None
    try:
        version = facts["schema_version"]
        program = facts.get("program", "0.1")
        missing = _NEEDED - facts.keys()
    except (TypeError, KeyError, AttributeError) as error:
        raise Damaged(path, f"{type(error).__name__}: {error}") from None
    if not isinstance(version, int) or version < 1:
        raise Damaged(path, f"its schema_version is {version!r}")
    if version > VERSION:
        raise UserError(
            f"{path} was written by srt-assets {program}, in version {version} of its form; this is srt-assets "
            f"{__version__}, which knows versions up to {VERSION}",
            f"install srt-assets {program} or newer (pip install -U srt-assets)",
        )
    checksum = facts.pop("checksum", None)
    if (version >= _CHECKED or checksum) and checksum != digest(**facts):
        raise Damaged(path, "it does not match its own checksum")
    if missing:
        raise Damaged(path, f"it lacks {', '.join(sorted(missing))}")
    while version < VERSION:
        facts, version = _STEPS[version](facts), version + 1
    if unknown := sorted(facts.keys() - _FIELDS.keys()):
        raise UserError(
            f"{path} has the key {unknown[0]!r}, which this program (srt-assets {__version__}) does not know; "
            f"srt-assets {program} wrote it",
            "install a newer srt-assets (pip install -U srt-assets); or take the key out, if it was put in by hand",
        )
    return Manifest(**facts | {"parts": tuple(facts["parts"]), "schema_version": VERSION})


def version_of(directory: Path) -> int:
    """The version of a manifest on disk; 0 if it is damaged (`read` raises the error)."""
    try:
        return int(json.loads(read_own(directory / NAME))["schema_version"])
    except (ValueError, TypeError, KeyError, OSError, Damaged):
        return 0


def upgrade(directory: Path, manifest: Manifest) -> None:
    """Rewrite a manifest in this program's form and keep the old one beside it, as `_manifest.v1.json`."""
    path = directory / NAME
    replace_text(path.with_name(f"_manifest.v{version_of(directory)}.json"), read_own(path))
    manifest.write(directory)
