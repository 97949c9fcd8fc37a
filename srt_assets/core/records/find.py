"""Which files a dataset's `path` names, and of what kind each is. What is in them is read in read.py."""

import os
import re
from collections.abc import Iterator
from glob import glob
from itertools import dropwhile
from os.path import lexists
from pathlib import Path

from srt_assets.core import files
from srt_assets.core.errors import UserError
from srt_assets.core.records.packed import PACKINGS
from srt_assets.paths import brief, shown
from srt_assets.settings import Dataset

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".csv", ".tsv")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def kind_of(file: Path) -> tuple[str, bool]:
    """One of SUFFIXES, whatever its case ('' if it is none), and whether the file is packed on top of that."""
    suffix = file.suffix.lower()
    packed = suffix in PACKINGS
    if packed:
        suffix = Path(file.stem).suffix.lower()
    return suffix if suffix in SUFFIXES else "", packed


def dataset_files(dataset: Dataset) -> list[Path]:
    """The files a dataset's `path` (a file or a glob) names, sorted. UserError if there is none, or no data file."""
    path = Path(dataset.path).absolute()
    if files.is_folder(path):
        raise UserError(f"dataset {dataset.name!r}: {path} is a folder", f"name its files: {dataset.path}/*.jsonl")
    found = [path] if lexists(path) else sorted(set(_matching(*_pattern(path))))
    # A folder's name may match a pattern that is about files; anything else that is no file is said.
    found = [file for file in found if not files.is_folder(file)]
    if not found:
        remedy = "correct datasets.path in srt.toml; relative paths count from the folder of srt.toml"
        # settings.py has written the path in full.
        if _HUB_ID.fullmatch(name := "/".join(path.parts[-2:])) and not kind_of(path)[0]:
            remedy += f"; a set of the Hugging Face hub is hf = {name!r}"
        raise UserError(f"dataset {dataset.name!r}: no file at {brief(path)}", remedy)
    for file in found:
        if why := files.what_else(file):
            raise UserError(
                f"dataset {dataset.name!r}: {brief(file)} {why}",
                "name an ordinary file: it is read several times, and must be the same each time",
            )
        kind, packed = kind_of(file)
        if not kind:
            before = f" before its {file.suffix}" if packed else f", each also with {' or '.join(PACKINGS)} behind it"
            raise UserError(
                f"dataset {dataset.name!r}: {file} is none of {', '.join(SUFFIXES)}{before}",
                "convert it or narrow the glob",
            )
        if shown(file) != str(file):  # no table takes it
            raise UserError(f"dataset {dataset.name!r}: the name {shown(file)} is not UTF-8", "rename the file")
    return found


def _pattern(path: Path) -> tuple[Path, list[str]]:
    """A path cut where its pattern begins: folders that are there under their very names, `[exp]` too, are none."""
    folder, *names = path.parts
    there = Path(folder)
    for place, name in enumerate(names[:-1]):
        if not files.is_folder(there / name):
            return there, names[place:]
        there /= name
    return there, names[-1:]


def _matching(folder: Path, names: list[str]) -> Iterator[Path]:
    """What a pattern, given by its parts, matches below a folder; nothing hidden, as in a shell."""
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
    """A folder and all below it, each once: links between folders may go round in circles."""
    try:
        found = top.stat()
        if (found.st_dev, found.st_ino) in seen:
            return
        seen.add((found.st_dev, found.st_ino))
        below = [entry for entry in os.scandir(top) if files.is_folder(Path(entry.path)) and entry.name[0] != "."]
    except OSError:  # none, or not ours to look into
        return
    yield top
    for entry in sorted(below, key=lambda entry: (entry.is_symlink(), entry.name)):
        yield from _folders(top / entry.name, seen)
