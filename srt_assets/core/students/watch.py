"""The students that the watched folder offers. Reads names, sizes and headers, not weights, and uses no network.

<folder>/<name>/          a checkpoint directory; a student once it is complete
<folder>/students.toml    students from the hub, one per line: small-500 = "org/small@step-500"
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from srt_assets.core import files
from srt_assets.core.errors import UserError
from srt_assets.core.hashing import digest
from srt_assets.core.lake import Lake
from srt_assets.core.students import checkpoints, folders, retired, sources
from srt_assets.core.students.checkpoint_files import inspect, slugify
from srt_assets.core.students.retired import Retired
from srt_assets.settings import Settings

LIST = "students.toml"


@dataclass(frozen=True)
class Found:
    """An offered student: its source, and a signature that changes with its files or its line in the list."""

    source: str
    signature: str
    listed: bool = False


def scan(folder: Path, only: str | None = None) -> tuple[dict[str, Found], dict[str, str]]:
    """(students by slug, reasons by name for directories and lines that are no students, or not complete yet).

    `only`: look only at the student with this key.
    """
    whole: dict[str, Found] = {}
    entries = sorted(p for p in folder.glob("*") if not p.name.startswith("."))
    directories = [p for p in entries if files.is_folder(p)]
    lines, why_no_lines = _lines(folder / LIST)
    refused = {LIST: why_no_lines} if why_no_lines else {}
    refused |= {
        p.name: why for p in entries if not files.is_folder(p) and p.name != LIST and (why := files.what_else(p))
    }
    offered: list[tuple[str, str, object]] = [(p.name, p.name, p) for p in directories]
    offered += [(f"{LIST}: {name}", name, value) for name, value in lines.items()]
    for label, name, value in offered:
        try:
            slug = slugify(name)
            if only not in (None, slug):
                continue
            found = _found(value)
        except UserError as error:
            refused[label] = error.message
        except OSError as error:  # being moved or written just now, or an invalid file name
            refused[label] = f"cannot be {'read now' if value in directories else 'looked for'}: {error.strerror}"
        else:
            if slug in whole:
                refused[label] = f"has the same key as {whole[slug].source}: {slug}"
            else:
                whole[slug] = found
    return whole, refused


def _lines(file: Path) -> tuple[dict[str, object], str]:
    """The lines of the list by name, and why it could not be read ('' if it could, or is not there)."""
    try:
        return tomllib.loads(files.read_text(file, files.WRITTEN)), ""
    except FileNotFoundError:
        return {}, ""
    except files.NoFile as error:
        return {}, error.why
    except OSError as error:
        return {}, f"cannot be read now: {error.strerror}"
    except (ValueError, RecursionError) as error:
        return {}, f"is no valid TOML: {error}"


def _found(value: object) -> Found:
    """The student in a folder, or in the value of a line of the list."""
    if isinstance(value, Path):
        return Found(str(value), inspect(value).signature())
    if not isinstance(value, str):
        raise UserError(f"{value!r} is no hub id", 'write NAME = "org/model@revision"; a NAME with dots in quotes')
    if sources.resolve(value).local:
        raise UserError(f"{value} is a directory", "put it, or a link to it, into the watched folder")
    return Found(value, digest(source=value), listed=True)


def offered(settings: Settings, only: str | None = None) -> dict[str, Found]:
    """The students that the watched folder offers, retired ones included; {} without one. `only` as in `scan`."""
    return scan(Path(settings.automation.watch), only)[0] if settings.automation.watch else {}


def kept_out(lake: Lake, slug: str, found: Found) -> Retired | None:
    """The retired student that has these files, which do not bring it back; None if the files are new."""
    known = retired.get(lake, slug)
    return known if known and found.signature in known.signatures else None


def register(settings: Settings, lake: Lake, slug: str) -> None:
    """Register or refresh the watched student with this key; does nothing for other students.

    UserError if the student is retired and its files have not changed.
    """
    if found := offered(settings, slug).get(slug):
        known = retired.get(lake, slug)
        if known and _same_files(lake, known, found):
            raise known.error
        # A line with another revision means the same student with new content.
        checkpoints.add(settings, lake, found.source, slug, replace=found.listed, back=bool(known))


def _same_files(lake: Lake, known: Retired, found: Found) -> bool:
    """Whether these files are the retired student's. Reads the weights if their stat values are new."""
    if found.signature in known.signatures:
        return True
    if found.listed or inspect(Path(found.source)).fingerprint() != known.fingerprint:
        return False
    with folders.registering(lake, known.slug):
        retired.note(lake, known.slug, signatures=[*known.signatures, found.signature])
    return True
