"""Deletes a retired student's results: scores, decisions, training runs and steps, finetuned checkpoints.

It never deletes the student's source, the teacher's ledger or the candidates. The student's record stays, and with it
the mark that it is retired. The manifests are deleted first, from the last stage to the first, then `srt.duckdb` is
renewed, and only then are files deleted. A purge that is killed in between leaves the results of the earlier stages
valid, and the same command finishes it.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from srt_assets.core import manifest as manifests
from srt_assets.core import stages
from srt_assets.core.aside import FOLDER
from srt_assets.core.errors import StageError, UserError
from srt_assets.core.files import folder_size
from srt_assets.core.lake import Lake
from srt_assets.core.locks import kept
from srt_assets.core.sql.catalog import publish
from srt_assets.core.students import folders, retired
from srt_assets.core.students.folders import RECORD
from srt_assets.core.training import finished


@dataclass(frozen=True)
class Item:
    """A folder to delete: what it holds, and its size in bytes (symlinks count as 0)."""

    what: str
    path: Path
    size: int


def find(lake: Lake, slug: str) -> list[Item]:
    """What `purge` would delete now, in the order of deletion. Deletes nothing."""
    found = [Item(_rows(lake, table, slug), path, folder_size(path)) for table, path in _tables(lake, slug)]
    trainings, unfinished = finished.directory(lake, slug), _unfinished(lake, slug)
    if trainings.is_dir():
        count = len(list(trainings.glob(f"[!.]*/{finished.RECORD}")))
        found.append(Item(f"finetuned checkpoints: {count}", trainings, folder_size(trainings)))
    if unfinished.is_dir() and any(unfinished.iterdir()):
        found.append(Item("unfinished trainings", unfinished, folder_size(unfinished)))
    registered = lake.home / "students" / slug
    if any(path.name != RECORD for path in registered.glob("*")):
        found.append(Item("links to its files, or what they were converted to", registered, folder_size(registered)))
    return found


def stays(lake: Lake, slug: str) -> list[Path]:
    """Damaged files of the student that `srt repair` set aside. `purge` leaves them for people to look at."""
    places = (f"*/lake/*/student={slug}", f"*/checkpoints/{slug}", f"*/students/{slug}")
    return sorted(path for place in places for path in (lake.home / FOLDER).glob(place))


def check(lake: Lake, slug: str) -> None:
    """UserError if another student, retired or not, was registered from a checkpoint of this one."""
    made = finished.directory(lake, slug).resolve()
    links = [path for path in (lake.home / "students").glob("*/*") if path.is_symlink()]
    # While a student is registered again, its old folder is `.old-<slug>` for a moment.
    names = {link.parent.name.removeprefix(".old-") for link in links if link.resolve().is_relative_to(made)}
    children = sorted(name for name in names if name != slug and not name.startswith("."))
    if children:
        raise UserError(
            f"{', '.join(children)} was finetuned from {slug}, and its files are among those that would go",
            f"purge it first: srt students remove {children[0]} --purge",
        )


@contextmanager
def held(lake: Lake, slug: str) -> Iterator[None]:
    """Lock all stages of this student. StageError if a run is working on it."""
    with ExitStack() as locks:
        try:
            for stage in stages.of_student():
                locks.enter_context(lake.lock(stage.main, stage.partition(slug), wait=False))
        except BlockingIOError as error:
            raise StageError(
                f"a run of {slug} goes on ({error}); nothing was deleted", "wait for it or stop it, then run this again"
            ) from None
        yield


def purge(lake: Lake, slug: str) -> None:
    """Delete the results of a retired student.

    UserError as `check`. StageError if a run works on the student, or if another process reads its rows: the parts that
    are being read stay.
    """
    with held(lake, slug):
        check(lake, slug)
        items = find(lake, slug)
        for _, path in _tables(lake, slug):
            # The copy first: a copy without its manifest counts as damage.
            (path / manifests.COPY).unlink(missing_ok=True)
            (path / manifests.NAME).unlink(missing_ok=True)
        publish(lake)
        names = kept(lake.home / "locks" / "reading")
        read = [item.path for item in items if any(part.name in names for part in item.path.glob("part-*"))]
        for item in items:
            if item.path in read:
                continue
            if item.path == lake.home / "students" / slug:
                _empty(item.path)
            elif item.path == finished.directory(lake, slug):
                _trainings(item.path)
            else:
                shutil.rmtree(item.path)
        if (unfinished := _unfinished(lake, slug)).is_dir():  # `find` does not list an empty folder
            unfinished.rmdir()
        if read:
            raise StageError(
                f"{read[0]} is being read by another process and was left; all else of {slug} is deleted",
                "run it again when that is done",
            )
        with folders.registering(lake, slug):
            retired.note(lake, slug, purged_at=datetime.now(UTC).isoformat())


def _unfinished(lake: Lake, slug: str) -> Path:
    return lake.home / "training" / slug


def _tables(lake: Lake, slug: str) -> list[tuple[str, Path]]:
    """The tables that have a folder for this student, last stage first; within a stage the main table first."""
    made = [table for stage in reversed(stages.of_student()) for table in (*stage.tables, *stage.feeds)]
    named = [table for table in made if table != retired.TABLE]
    folders_of = [(table, lake.directory(table, f"student={slug}")) for table in named]
    return [(table, path) for table, path in folders_of if path.is_dir()]


def _rows(lake: Lake, table: str, slug: str) -> str:
    try:
        manifest = lake.manifest(table, f"student={slug}")
    except UserError:  # a damaged table is deleted too
        return f"{table}: the number of rows is not known"
    return f"{table}: {manifest.rows:,} rows" if manifest else f"{table}: what was left of it"


def _empty(folder: Path) -> None:
    """Delete everything but the record; of symlinks, only the links."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != RECORD:
            path.unlink()


def _trainings(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            finished.delete(path)
    shutil.rmtree(folder)
