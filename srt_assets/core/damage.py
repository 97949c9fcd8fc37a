"""Finds every damaged file of a home, by reading all files. Changes nothing.

The repair is in `repair.py`. Files outside the lake (students, checkpoints) are checked by the modules that write them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from srt_assets.core import integrity, stages, upgrade
from srt_assets.core import manifest as manifests
from srt_assets.core.errors import Damaged, UserError
from srt_assets.core.files import read_own
from srt_assets.core.lake import FAILURE, Lake
from srt_assets.core.manifest import Manifest
from srt_assets.core.sql import catalog
from srt_assets.core.students import checkpoints
from srt_assets.core.tables import TABLES
from srt_assets.core.teacher import ledger, sealing
from srt_assets.core.training import finished


@dataclass(frozen=True)
class Content:
    """A table or partition on disk. `manifest` is None if it is missing, or unreadable (then `unreadable` says why)."""

    table: str
    partition: str | None
    directory: Path
    manifest: Manifest | None
    unreadable: UserError | None


def contents(lake: Lake) -> Iterator[Content]:
    """All tables and partitions that have a folder, damaged ones included."""
    assert stages.STAGES, "importing the stages adds their tables to TABLES"
    for table in TABLES:
        root = lake.directory(table)
        folders = [root, *sorted(path for path in root.glob("*=*") if path.is_dir())] if root.is_dir() else []
        for folder in folders:
            partition = None if folder == root else folder.name
            manifest, unreadable = None, None
            try:
                manifest = manifests.read(folder)
            except UserError as error:
                unreadable = error
            yield Content(table, partition, folder, manifest, unreadable)


def find(lake: Lake) -> Iterator[UserError]:
    """One error per damaged file, and one per manifest that only a newer program can read."""
    for content in contents(lake):
        yield from of_content(lake, content)
    yield from notes(lake)
    yield from of_ledger(lake)
    yield from (error for _, error in of_students(lake))
    yield from (error for _, error in of_checkpoints(lake))
    if (published := catalog.path_of(lake)).is_dir():
        yield Damaged(published, "it is a folder")


def of_content(lake: Lake, content: Content) -> list[UserError]:
    """The errors of one table or partition: those of its manifest or, if that is readable, those of its parts."""
    if content.unreadable:
        return [content.unreadable]
    unnamed: list[UserError] = [*sealing.damaged_unnamed(lake)] if content.table == ledger.TABLE else []
    if content.manifest:
        return [*integrity.problems(content.directory, content.manifest), *unnamed]
    if unnamed:
        return unnamed
    try:
        copy = manifests.read(content.directory, manifests.COPY)
    except UserError:
        copy = None
    return [Damaged(content.directory / manifests.NAME, "it is gone, though its copy is there")] if copy else []


def notes(lake: Lake) -> list[Damaged]:
    """Unreadable failure notes and version marks; the next run would stop at them."""
    found = []
    marks = [lake.root / upgrade.MARK, *lake.root.glob(f"*/{FAILURE}"), *lake.root.glob(f"*/*/{FAILURE}")]
    for path in marks:
        try:
            json.loads(read_own(path))
        except FileNotFoundError:
            continue
        except Damaged as error:
            found.append(error)
        except ValueError as error:
            found.append(Damaged(path, str(error)))
    return found


def of_ledger(lake: Lake) -> list[Damaged]:
    """Ledger segments with complete lines that do not match their checksums. An incomplete last line is no damage."""
    found = []
    for path in ledger.segments(lake):
        lines: list[bytes] = []
        for _ in ledger.read_segment(path, lines):
            pass
        if damaged := sum(line.endswith(b"\n") for line in lines):
            found.append(Damaged(path, f"{damaged} of its replies do not match their checksums"))
    return found


def of_students(lake: Lake) -> Iterator[tuple[str, UserError]]:
    """(slug, error) of each registered student whose record or weights have changed or are unreadable."""
    for slug in checkpoints.list_students(lake):
        try:
            checkpoints.verify(lake, slug)
        except UserError as error:
            yield slug, error


def of_checkpoints(lake: Lake) -> Iterator[tuple[Path, UserError]]:
    """(folder, error) of each finished training whose files differ from those that were saved."""
    for path in sorted((lake.home / "checkpoints").glob(f"*/[!.]*/{finished.RECORD}")):
        try:
            finished.verify(path.parent)
        except UserError as error:
            yield path.parent, error
