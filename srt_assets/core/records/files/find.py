"""Which files a dataset's `path` names, and of which kind each file is. They are read in read.py."""

import os
import re
from collections.abc import Iterator
from glob import glob
from itertools import dropwhile
from os.path import lexists
from pathlib import Path

from srt_assets.core import files
from srt_assets.core.errors import UserError
from srt_assets.core.records.files.packed import PACKINGS
from srt_assets.paths import brief, shown
from srt_assets.settings import Dataset

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".csv", ".tsv")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def kind_of(file: Path) -> tuple[str, bool]:
    """One of SUFFIXES, in any case ('' if it is none of them), and whether the file is also packed."""
    suffix = file.suffix.lower()
    packed = suffix in PACKINGS
    if packed:
        suffix = Path(file.stem).suffix.lower()
    return suffix if suffix in SUFFIXES else "", packed


def dataset_files(dataset: Dataset) -> list[Path]:
    """The files that a dataset's `path` (a file or a glob) names, sorted.

    UserError if there are none, or if one of them is not a data file.
    """
    path = Path(dataset.path).absolute()
    if files.is_folder(path):
        raise UserError(f"dataset {dataset.name!r}: {path} is a folder", f"name its files: {dataset.path}/*.jsonl")
    found = [path] if lexists(path) else sorted(set(_matching(*_pattern(path))))
    # A glob may match folders, which are left out. Pipes, devices and the like are errors below.
    found = [file for file in found if not files.is_folder(file)]
    if not found:
        remedy = "correct datasets.path in srt.toml; relative paths count from the folder of srt.toml"
        # settings.py has made the path absolute, so a hub id is its last two parts.
        if _HUB_ID.fullmatch(name := "/".join(path.parts[-2:])) and not kind_of(path)[0]:
            remedy += f"; for a dataset of the Hugging Face hub, set hf = {name!r}"
        raise UserError(f"dataset {dataset.name!r}: no file at {brief(path)}", remedy)
    for file in found:
        if why := files.what_else(file):
            raise UserError(
                f"dataset {dataset.name!r}: {brief(file)} {why}",
                "name an ordinary file, because it is read several times",
            )
        kind, packed = kind_of(file)
        if not kind:
            before = f" before {file.suffix}" if packed else f", each also followed by {' or '.join(PACKINGS)}"
            raise UserError(
                f"dataset {dataset.name!r}: {file} ends in none of {', '.join(SUFFIXES)}{before}",
                "convert it or narrow the glob",
            )
        if shown(file) != str(file):  # a table cannot store it
            raise UserError(f"dataset {dataset.name!r}: the name {shown(file)} is not UTF-8", "rename the file")
    return found


def _pattern(path: Path) -> tuple[Path, list[str]]:
    """The folder where a glob begins, and the glob's parts. An existing folder, even `[exp]`, is not a pattern."""
    folder, *names = path.parts
    there = Path(folder)
    for place, name in enumerate(names[:-1]):
        if not files.is_folder(there / name):
            return there, names[place:]
        there /= name
    return there, names[-1:]


def _matching(folder: Path, names: list[str]) -> Iterator[Path]:
    """What a pattern, given by its parts, matches below a folder. Hidden files are left out, as in a shell."""
    if "**" in names:
        place = names.index("**")
        rest = list(dropwhile(lambda name: name == "**", names[place:]))
        tops = _matching(folder, names[:place]) if place else [folder]
        seen: set[tuple[int, int]] = set()
        for below in (b for top in tops for b in _folders(top, seen)):
            yield from _matching(below, rest or ["*"])
    else:
        # Not Path.glob, which finds hidden files too.
        yield from (folder / name for name in glob(str(Path(*names)), root_dir=folder))  # noqa: PTH207


def _folders(top: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """A folder and all folders below it, each once, because links between folders may be circular."""
    try:
        found = top.stat()
        if (found.st_dev, found.st_ino) in seen:
            return
        seen.add((found.st_dev, found.st_ino))
        below = [entry for entry in os.scandir(top) if files.is_folder(Path(entry.path)) and entry.name[0] != "."]
    except OSError:  # missing, or not readable
        return
    yield top
    for entry in sorted(below, key=lambda entry: (entry.is_symlink(), entry.name)):
        yield from _folders(top / entry.name, seen)
