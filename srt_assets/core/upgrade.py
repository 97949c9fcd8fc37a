"""Rewrites all manifests of an older program's home in this program's form, before the first write to that home."""

import dataclasses
import json
import logging
from pathlib import Path

from srt_assets.core import integrity
from srt_assets.core import manifest as manifests
from srt_assets.core.errors import UserError
from srt_assets.core.files import read_own
from srt_assets.core.hashing import file_sha256
from srt_assets.core.locks import file_lock, replace_text

MARK = "_version.json"

log = logging.getLogger(__name__)


def upgrade(home: Path) -> None:
    """Upgrade the manifests of a home, unless that is done. Each old manifest is kept beside the new one.

    Every commit calls this first, so that no commit writes a manifest during the upgrade.
    """
    root = home / "lake"
    mark = root / MARK
    if _says(mark, manifests.VERSION):
        return
    with file_lock(home / "locks" / "upgrade.lock"):
        if _says(mark, manifests.VERSION):
            return
        found = [path.parent for path in sorted(root.glob(f"*/**/{manifests.NAME}"))]
        old = [directory for directory in found if 0 < manifests.version_of(directory) < manifests.VERSION]
        upgraded = sum(_upgraded(home, directory) for directory in old)
        root.mkdir(parents=True, exist_ok=True)
        replace_text(mark, json.dumps(manifests.VERSION))
    if old:
        what = "%s was made by an older srt-assets: %d manifests are of the new form, the old ones lie beside them"
        log.warning(what, home, upgraded)


def _says(mark: Path, version: int) -> bool:
    try:
        return read_own(mark) == json.dumps(version)
    except FileNotFoundError:
        return False


def _upgraded(home: Path, directory: Path) -> bool:
    """Add the SHA-256 sums of the parts to an older manifest. False if a part is damaged: nothing changes."""
    try:
        manifest = manifests.read(directory)
        if manifest is None:
            return False
        integrity.verify(directory, manifest, integrity.memory_of(home, manifest))
    except UserError:  # readers of this table get the error; other tables can still be written
        return False
    sums = {name: file_sha256(directory / name) for name in manifest.parts}
    manifests.upgrade(directory, dataclasses.replace(manifest, sums=sums))
    return True
