"""The watched folder: which students it offers. Reads names, sizes and headers, never weights, and asks no network.

<folder>/<name>/          a checkpoint directory; a student once it is whole
<folder>/students.toml    students from the hub, one a line: small-500 = "org/small@step-500"
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from srt_assets.core.errors import UserError
from srt_assets.core.hashing import digest
from srt_assets.core.lake import Lake
from srt_assets.core.student import checkpoints, sources
from srt_assets.core.student.checkpoint_files import inspect, slugify
from srt_assets.settings import Settings

LIST = "students.toml"


@dataclass(frozen=True)
class Found:
    """A student to be: where from, and a signature that changes when its files or its line do."""

    source: str
    signature: str
    listed: bool = False


def scan(folder: Path) -> tuple[dict[str, Found], dict[str, str]]:
    """(students by slug, reasons by name of directories and lines that are none, or not whole yet)."""
    whole: dict[str, Found] = {}
    refused: dict[str, str] = {}
    for directory in sorted(p for p in folder.glob("*") if p.is_dir() and not p.name.startswith(".")):
        try:
            slug = slugify(directory.name)
            found = Found(str(directory), inspect(directory).signature())
        except UserError as error:
            refused[directory.name] = error.message
        except OSError as error:  # being moved or written while we look
            refused[directory.name] = f"cannot be read now: {error.strerror}"
        else:
            if slug in whole:
                refused[directory.name] = f"has the same key as {Path(whole[slug].source).name}: {slug}"
            else:
                whole[slug] = found
    for name, value in _lines(folder / LIST, refused).items():
        try:
            slug, source = slugify(name), _from_the_hub(value)
        except UserError as error:
            refused[f"{LIST}: {name}"] = error.message
        except OSError as error:  # a name that no file system takes
            refused[f"{LIST}: {name}"] = f"cannot be looked for: {error.strerror}"
        else:
            if slug in whole:
                refused[f"{LIST}: {name}"] = f"has the same key as {whole[slug].source}: {slug}"
            else:
                whole[slug] = Found(source, digest(source=source), listed=True)
    return whole, refused


def _lines(file: Path, refused: dict[str, str]) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        refused[LIST] = f"is no valid TOML: {error}"
    except OSError as error:
        refused[LIST] = f"cannot be read now: {error.strerror}"
    return {}


def _from_the_hub(value: object) -> str:
    if not isinstance(value, str):
        raise UserError(f"{value!r} is no hub id", 'write NAME = "org/model@revision"; a NAME with dots in quotes')
    if sources.resolve(value).local:
        raise UserError(f"{value} is a directory", "put it, or a link to it, into the watched folder")
    return value


def register(settings: Settings, lake: Lake, slug: str) -> None:
    """Register the watched student of this key, or refresh it; nothing to do for students from elsewhere."""
    if not settings.automation.watch:
        return
    whole, _ = scan(Path(settings.automation.watch))
    if found := whole.get(slug):
        # A line that names another revision is the same student with new content.
        checkpoints.add(settings, lake, found.source, slug, replace=found.listed)
