"""The watched folder: which directories in it are whole checkpoints. Reads names, sizes and headers, never weights."""

from dataclasses import dataclass
from pathlib import Path

from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.student import checkpoints
from srt_assets.core.student.checkpoint_files import inspect, slugify
from srt_assets.settings import Settings


@dataclass(frozen=True)
class Found:
    """A whole checkpoint: its directory, and a signature that changes whenever a file of it does."""

    directory: Path
    signature: str


def scan(folder: Path) -> tuple[dict[str, Found], dict[str, str]]:
    """(checkpoints by slug, reasons by name of directories that are none or not whole yet)."""
    whole: dict[str, Found] = {}
    refused: dict[str, str] = {}
    for directory in sorted(p for p in folder.glob("*") if p.is_dir() and not p.name.startswith(".")):
        try:
            slug = slugify(directory.name)
            found = Found(directory, inspect(directory).signature())
        except UserError as error:
            refused[directory.name] = error.message
        except OSError as error:  # being moved or written while we look
            refused[directory.name] = f"cannot be read now: {error.strerror}"
        else:
            if slug in whole:
                refused[directory.name] = f"has the same key as {whole[slug].directory.name}: {slug}"
            else:
                whole[slug] = found
    return whole, refused


def register(settings: Settings, lake: Lake, slug: str) -> None:
    """Register the watched checkpoint of this key, or refresh its links; nothing to do for students from elsewhere."""
    if not settings.automation.watch:
        return
    whole, _ = scan(Path(settings.automation.watch))
    if slug in whole:
        checkpoints.add(settings, lake, str(whole[slug].directory), slug)
