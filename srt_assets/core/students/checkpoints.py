"""Registers students under `students/<slug>/`, from where they are loaded with `from_pretrained`.

    students/<slug>/config.json …      symlinks to the files of the source, or the files themselves if converted
    students/<slug>/srt_student.json   the source, and the last computed fingerprint

Registering is cheap and idempotent. If the files of a source change, the student gets a new fingerprint.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srt_assets.core.errors import Damaged, UserError
from srt_assets.core.lake import Lake
from srt_assets.core.locks import replace_text
from srt_assets.core.one_look import once_a_look
from srt_assets.core.students import folders, retired, sources
from srt_assets.core.students.checkpoint_files import Files, inspect, readable, slugify
from srt_assets.core.students.folders import RECORD, RETIRED
from srt_assets.core.students.folders import slugs as list_students
from srt_assets.core.students.plausible import POSITIONS
from srt_assets.settings import Settings

_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass(frozen=True)
class StudentInfo:
    """A registered student. `source`: as registered; `source_now`: its present path, which differs if the source is in
    this home and the home has moved. `path`: directory for `from_pretrained`. `weights_bytes`: size of the weights on
    disk. `max_positions`: longest sequence in tokens, 0 if the configuration does not say. `caps_logits`: the
    configuration caps the logits after the output layer.
    """

    slug: str
    source: str
    source_now: str
    revision: str
    path: Path
    fingerprint: str
    architecture: str
    n_parameters: int
    vocab_size: int
    weights_bytes: int
    max_positions: int
    caps_logits: bool = False
    parent: str = ""
    generation: int = 0


def add(
    settings: Settings, lake: Lake, source: str, name: str | None = None, replace: bool = False, back: bool = True
) -> StudentInfo:
    """Register a student: a checkpoint directory, a hub id (`org/name@revision`), or `smollm2`, the packaged one.

    Registering the same source again refreshes its symlinks; a path that is a symlink stays the same source when the
    symlink changes. A retired student is back in use, unless `back` is false. UserError if the source cannot be read,
    is not a complete safetensors checkpoint with a tokenizer, or if the key belongs to another source that still exists
    (`replace`: one hub source may replace another).
    """
    origin = sources.resolve(source)
    slug = slugify(name or origin.default_name)
    root = lake.home / "students"
    with folders.registering(lake, slug):
        folders.settle(root, slug)
        known = folders.record(root / slug)
        if (out := retired.of(slug, known)) and not back:
            raise out.error
        if known and _is_taken(root / slug, known, source, origin, replace):
            raise UserError(
                f"the student key {slug!r} is taken by {known['source']}",
                "choose another: --name, or in the watched folder its name there",
            )
        _place(lake, slug, origin, _given(source, origin), known)
    retired.show(lake, slug)
    return get(lake, slug)


def _place(lake: Lake, slug: str, origin: sources.Origin, given: str, before: dict | None) -> None:
    """Fill the student's folder. If it is up to date it is left alone, because a run may be reading it."""
    root = lake.home / "students"
    known = {key: value for key, value in (before or {}).items() if key != RETIRED}

    def leave() -> None:
        if known != before:
            replace_text(root / slug / RECORD, json.dumps(known, indent=1))

    if known and known["source"] == origin.source and origin.built_once:
        with suppress(UserError):  # a broken one is built again
            inspect(root / slug)
            leave()
            get(lake, slug)
            return
    aside = root / f".aside-{slug}"
    try:
        files, revision = _collect(origin, aside)
        facts = {"source": origin.source, "given": given, "revision": revision, **_ancestry(lake, files)}
        # A converted student has no symlinks, so comparing them would prove nothing.
        same = bool(known) and not origin.built_once and _links(root / slug) == _links(aside)
        if same and facts.items() <= known.items():
            leave()
            return
        if same:
            # `get` compares the signature, so unchanged files are not read again for their fingerprint.
            facts |= {key: known[key] for key in ("signature", "fingerprint") if key in known}
        (aside / RECORD).write_text(json.dumps(facts))
        if (root / slug).exists():
            (root / slug).replace(folders.old(root, slug))
        aside.replace(root / slug)
    finally:
        folders.settle(root, slug)


def taken_by(lake: Lake, slug: str, source: str, replace: bool = False) -> str:
    """The source that already has this key, if `add` would therefore refuse this one; '' if `add` would accept it."""
    known = folders.known(lake, slug)
    path = lake.home / "students" / slug
    return known["source"] if known and _is_taken(path, known, source, sources.resolve(source), replace) else ""


@once_a_look
def get(lake: Lake, slug: str) -> StudentInfo:
    """A registered student with its current fingerprint. UserError if it is unknown, retired, or incomplete."""
    path = lake.home / "students" / slug
    record = folders.known(lake, slug)
    if record is None:
        known = ", ".join(list_students(lake)) or "none yet"
        raise UserError(f"no student {slug!r} (registered: {known})", "register it: srt students add PATH|MODEL_ID")
    if not record:
        raise Damaged(path / RECORD, "it does not say which student this is")
    if out := retired.of(slug, record):
        raise out.error
    files = inspect(path)
    with readable(path):
        signature = files.signature()
        before = dict(record)
        if record.get("signature") != signature or "fingerprint" not in record:
            record |= {"signature": signature, "fingerprint": files.fingerprint()}
            expected = before.get("fingerprint")
            if expected not in (None, record["fingerprint"]) and _is_ours(lake, files):
                raise _altered(path)
    # Computing the fingerprint takes time. If another process registered the student again meanwhile, keep its record.
    if record != before and folders.record(path) == before:
        replace_text(path / RECORD, json.dumps(record, indent=1))
    return StudentInfo(
        slug=slug,
        path=path,
        source_now=_source_now(path, record),
        n_parameters=files.n_parameters,
        weights_bytes=sum(p.stat().st_size for p in files.weights),
        **{key: record[key] for key in ("source", "revision", "fingerprint", "parent", "generation")},
        **_described(files),
    )


def verify(lake: Lake, slug: str) -> None:
    """Read a student's files again. Damaged if the content changed but the stat values did not. UserError as `get`."""
    info = get(lake, slug)
    files = inspect(info.path)
    with readable(info.path):
        if files.fingerprint() != info.fingerprint:
            raise _altered(info.path)


def _altered(path: Path) -> Damaged:
    return Damaged(path, "its weights, configuration or tokenizer are not what they were (SHA-256)")


def _is_ours(lake: Lake, files: Files) -> bool:
    """Whether the program itself wrote these files. Other files may be replaced by their owner at any time."""
    made = [(lake.home / folder).resolve() for folder in ("students", "checkpoints")]
    return all(any(path.resolve().is_relative_to(place) for place in made) for path in files.weights)


def _described(files: Files) -> dict[str, Any]:
    """Architecture, vocabulary size and positions from the configuration."""
    text = files.config.get("text_config") or files.config
    try:
        return {
            "architecture": str((files.config.get("architectures") or ["unknown"])[0]),
            "vocab_size": int(text.get("vocab_size") or 0),
            "max_positions": int(next((text[k] for k in POSITIONS if text.get(k)), 0)),
            "caps_logits": any(text.get(k) for k in _CAPS),
        }
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        config = files.directory / "config.json"
        raise UserError(f"{config} holds a value of the wrong kind: {error}", "save the checkpoint again") from None


def _collect(origin: sources.Origin, aside: Path) -> tuple[Files, str]:
    """Fill `aside` with the checkpoint: converted files, or symlinks to the files of the source."""
    aside.mkdir(parents=True)
    if origin.built_once:
        return inspect(sources.convert_packaged(aside)), ""
    directory, revision = sources.fetch(origin)
    files = inspect(directory)
    for path in files.all:
        # Symlinks are not resolved: those of the hub's cache may move, and a changed symlink means a changed source.
        (aside / path.name).symlink_to(_target(path.absolute(), aside))
    return files, revision


def _target(file: Path, aside: Path) -> Path | str:
    """The symlink's target: relative for files in the home, so that a student finetuned here moves with the home."""
    home, real = aside.parent.parent.resolve(), file.parent.resolve() / file.name
    return os.path.relpath(real, home / "students" / aside.name) if real.is_relative_to(home) else file


def _source_now(path: Path, record: dict) -> str:
    """The present path of the source: that of a relative symlink, because the record may have an old path."""
    link = path / "config.json"
    if not Path(record["source"]).is_absolute() or not link.is_symlink() or (target := link.readlink()).is_absolute():
        return record["source"]
    return str((path / target).parent.resolve())


def _given(source: str, origin: sources.Origin) -> str:
    return str(Path(source).expanduser().absolute()) if origin.local else origin.source


def _is_taken(path: Path, known: dict, source: str, origin: sources.Origin, replace: bool) -> bool:
    if (out := retired.of("", known)) and out.purged:
        return False
    same = origin.source in (known["source"], _source_now(path, known)) or known.get("given") == _given(source, origin)
    return not same and not _gone(known["source"]) and not (replace and sources.of_the_hub(known["source"]))


def _gone(source: str) -> bool:
    try:
        return Path(source).is_absolute() and not Path(source).exists()
    except OSError:  # without permission to look, assume that it exists
        return False


def _links(path: Path) -> dict[str, Path]:
    return {p.name: p.readlink() for p in path.iterdir() if p.is_symlink()}


def _ancestry(lake: Lake, files: Files) -> dict[str, str | int]:
    """Parent and generation of a checkpoint that was finetuned in this home, in `checkpoints/<parent>/<run>`."""
    made = (lake.home / "checkpoints").resolve()
    if not files.directory.is_relative_to(made):
        return {"parent": "", "generation": 0}
    parent = files.directory.relative_to(made).parts[0]
    before = folders.known(lake, parent)
    return {"parent": parent, "generation": (before["generation"] if before else 0) + 1}
