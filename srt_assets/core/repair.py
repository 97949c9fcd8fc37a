"""`srt repair`: moves damaged files aside and keeps intact ones; the next run makes the missing content again.

It deletes nothing and guesses nothing: a manifest is restored only from its copy, and a reply of the teacher is kept
only if it matches its checksum. Finding the damage is in `damage.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from srt_assets.core import damage, integrity, stages
from srt_assets.core import manifest as manifests
from srt_assets.core.aside import set_aside
from srt_assets.core.damage import Content
from srt_assets.core.errors import StageError, UserError
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.manifest import Manifest
from srt_assets.core.sql import catalog
from srt_assets.core.students import folders
from srt_assets.core.teacher import ledger, sealing


@dataclass(frozen=True)
class Repaired:
    """One damaged file: what was wrong, what is lost with it, what happens next, and where the file is now."""

    what: str
    lost: str
    next: str
    place: Path | None = None


def repair(lake: Lake) -> Iterator[Repaired]:
    """Repair damaged files one by one. StageError if a run is writing; UserError if a newer program wrote the home."""
    yield from _notes(lake)
    for content in damage.contents(lake):
        if damage.of_content(lake, content):
            yield from _locked(lake, content)
    yield from _students(lake)
    yield from _checkpoints(lake)
    if (published := catalog.path_of(lake)).is_dir():
        yield Repaired(f"{published} is a folder", "nothing", "it is made again", set_aside(lake.home, published))


def _notes(lake: Lake) -> Iterator[Repaired]:
    for error in damage.notes(lake):
        yield Repaired(error.message, "nothing that counts", "it is written again", set_aside(lake.home, error.file))


def _locked(lake: Lake, content: Content) -> Iterator[Repaired]:
    # A stage writes all its tables under the lock of its main one.
    of_student = {table: stage.main for stage in stages.of_student() for table in stage.feeds}
    main = next((stage.main for stage in stages.STAGES if content.table in stage.tables), None)
    main = main or of_student.get(content.table, content.table)
    try:
        with lake.lock(main, content.partition, wait=False):
            [now] = [c for c in damage.contents(lake) if c.directory == content.directory]
            yield from _content(lake, now)
    except BlockingIOError as error:
        raise StageError(str(error), "run srt repair again when that is done") from None


def _content(lake: Lake, content: Content) -> Iterator[Repaired]:
    found = damage.of_content(lake, content)
    if newer := [error for error in found if not isinstance(error, damage.Damaged)]:
        raise newer[0]
    manifest = content.manifest
    if found and manifest is None:
        yield _manifest(lake, content, found[0])
        manifest = manifests.read(content.directory)
        found = list(integrity.problems(content.directory, manifest)) if manifest else []
    if content.table == ledger.TABLE:
        yield from _ledger(lake, manifest)
    elif found and manifest:
        yield from _parts(lake, content, manifest, found)


def _manifest(lake: Lake, content: Content, error: UserError) -> Repaired:
    """Restore a missing or unreadable manifest from its copy."""
    path = content.directory / manifests.NAME
    place = set_aside(lake.home, path) if path.exists() else None
    try:
        copy = manifests.read(content.directory, manifests.COPY)
    except UserError:
        copy = None
    if copy:
        copy.write(content.directory)
        return Repaired(error.message, "nothing", "its copy was put in its place", place)
    if content.table == ledger.TABLE:
        return Repaired(error.message, "nothing", "the next run finds the parts of the ledger by their names", place)
    return Repaired(error.message, f"what {content.table} held", _made_again(content), place)


def _ledger(lake: Lake, before: Manifest | None) -> Iterator[Repaired]:
    done = sealing.salvage(lake)
    after = lake.manifest(ledger.TABLE)
    # The number of lost rows is known only if the manifest counted all damaged parts.
    counted = before is not None and all(path.name in before.parts for path, _, _ in done)
    lost = before.rows - after.rows if before and after and counted else None
    for path, place, kept in done:
        some = f"{kept:,} replies of it are whole and were kept"
        all_lost = "replies, how many is not known" if lost is None else f"{lost:,} replies of the ledger in all"
        yield Repaired(f"{path} is damaged", all_lost, f"{some}; a run asks again, and pays, for what it misses", place)


def _parts(lake: Lake, content: Content, manifest: Manifest, found: list[UserError]) -> Iterator[Repaired]:
    """Commit the intact parts as unfinished content, from which the next run continues."""
    bad = {Path(error.file) for error in found if isinstance(error, damage.Damaged)}
    # A manifest without sums does not tell which part is damaged, so all parts are set aside.
    bad = {path for path in bad if path.name in manifest.parts} or {content.directory / n for n in manifest.parts}
    good = [name for name in manifest.parts if content.directory / name not in bad]
    places = {path: set_aside(lake.home, path) if path.exists() else None for path in sorted(bad)}
    lake.commit(
        content.table,
        good,
        fingerprint=Fingerprint(manifest.inputs, manifest.fingerprint),
        code_version=manifest.code_version,
        partition=content.partition,
        complete=False,
        stats=manifest.stats,
    )
    left = lake.manifest(content.table, content.partition)
    rows = manifest.rows - (left.rows if left else 0)
    for error in found:
        place = places.get(Path(error.file)) if isinstance(error, damage.Damaged) else None
        yield Repaired(error.message, f"{rows:,} of {manifest.rows:,} rows", _made_again(content), place)


def _made_again(content: Content) -> str:
    kind, _, value = (content.partition or "").partition("=")
    stage = stages.maker(content.table)
    asset = value if kind == "asset" else stage.asset if stage else ""
    student = f" --student {value}" if kind == "student" else ""
    return f"srt run {asset}{student} makes it again"


def _students(lake: Lake) -> Iterator[Repaired]:
    for slug, error in damage.of_students(lake):
        if not isinstance(error, damage.Damaged):
            continue  # its source is missing or changed: the user must restore it, as srt doctor says
        with folders.registering(lake, slug):
            place = set_aside(lake.home, lake.home / "students" / slug)
        again = f"restore its files in SOURCE if they are damaged, then: srt students add SOURCE --name {slug}"
        yield Repaired(error.message, f"the registration of {slug}; its scores and checkpoints stay", again, place)


def _checkpoints(lake: Lake) -> Iterator[Repaired]:
    for folder, error in damage.of_checkpoints(lake):
        place = set_aside(lake.home, folder)
        student = folder.parent.name
        again = f"srt run finetuned_checkpoint --student {student} trains it again"
        yield Repaired(error.message, f"the finetuned checkpoint {folder.name}", again, place)
