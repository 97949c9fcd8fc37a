"""Students that can score: registered once under `students/<slug>/`, loaded from there with `from_pretrained`.

    students/<slug>/config.json …      links to the files where the source is local, the files themselves if converted
    students/<slug>/srt_student.json   where it came from, and its fingerprint as last computed

Registering is cheap and idempotent; a source whose files have changed gets a new fingerprint by itself.
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
from srt_assets.core.student import folders, sources
from srt_assets.core.student.checkpoint_files import Files, inspect, readable, slugify
from srt_assets.core.student.folders import RECORD
from srt_assets.core.student.folders import slugs as list_students
from srt_assets.settings import Settings

_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass(frozen=True)
class StudentInfo:
    """A registered student. `path`: directory for `from_pretrained`; `weights_bytes`: size of its weights on disk;
    `max_positions`: longest sequence in tokens it has positions for, 0 if its configuration does not say;
    `caps_logits`: its configuration bends the logits after the output layer.
    """

    slug: str
    source: str
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


def add(settings: Settings, lake: Lake, source: str, name: str | None = None, replace: bool = False) -> StudentInfo:
    """Register a student: a checkpoint directory, a hub id (`org/name@revision`), or `smollm2`, the packaged one.

    Doing it again for the same source refreshes its links; a link that leads elsewhere now is the same source. Raises
    UserError if the source cannot be had, is not a whole safetensors checkpoint with a tokenizer, or if the key is
    taken by another source that is still there (`replace`: one from the hub may take the place of one from the hub).
    """
    origin = sources.resolve(source)
    given = _given(source, origin)
    slug = slugify(name or origin.default_name)
    root = lake.home / "students"
    with folders.registering(lake, slug):
        folders.settle(root, slug)
        known = folders.record(root / slug)
        if known and _is_taken(known, source, origin, replace):
            raise UserError(
                f"the student key {slug!r} is taken by {known['source']}",
                "choose another: --name, or in the watched folder its name there",
            )
        if known and known["source"] == origin.source and origin.built_once:
            with suppress(UserError):  # a broken one is built again
                return get(lake, slug)
        aside = root / f".aside-{slug}"
        try:
            files, revision = _collect(origin, aside)
            facts = {"source": origin.source, "given": given, "revision": revision, **_ancestry(lake, files)}
            if known and facts.items() <= known.items() and _links(root / slug) == _links(aside):
                return get(lake, slug)  # a run may be reading it this moment
            if known and not origin.built_once and _links(root / slug) == _links(aside):
                # `get` compares the signature: the same files are not read again for their fingerprint.
                facts |= {key: known[key] for key in ("signature", "fingerprint") if key in known}
            (aside / RECORD).write_text(json.dumps(facts))
            if (root / slug).exists():
                (root / slug).replace(folders.old(root, slug))
            aside.replace(root / slug)
        finally:
            folders.settle(root, slug)
    return get(lake, slug)


def taken_by(lake: Lake, slug: str, source: str, replace: bool = False) -> str:
    """The source that `add` would not let this one push out of its key; '' if it would be registered."""
    known = folders.known(lake, slug)
    return known["source"] if known and _is_taken(known, source, sources.resolve(source), replace) else ""


def get(lake: Lake, slug: str) -> StudentInfo:
    """A registered student with its present fingerprint. Raises UserError if unknown, or no longer whole."""
    path = lake.home / "students" / slug
    record = folders.known(lake, slug)
    if record is None:
        known = ", ".join(list_students(lake)) or "none yet"
        raise UserError(f"no student {slug!r} (registered: {known})", "register it: srt students add PATH|MODEL_ID")
    if not record:
        raise Damaged(path / RECORD, "it does not say which student this is")
    files = inspect(path)
    with readable(path):
        signature = files.signature()
        before = dict(record)
        if record.get("signature") != signature or "fingerprint" not in record:
            record |= {"signature": signature, "fingerprint": files.fingerprint()}
            expected = before.get("fingerprint")
            if expected not in (None, record["fingerprint"]) and _is_ours(lake, files):
                raise Damaged(path, "its weights, configuration or tokenizer are not what they were (SHA-256)")
    # Computing took its time: whoever registered it anew meanwhile has written what holds now.
    if record != before and folders.record(path) == before:
        replace_text(path / RECORD, json.dumps(record, indent=1))
    return StudentInfo(
        slug=slug,
        path=path,
        n_parameters=files.n_parameters,
        weights_bytes=sum(p.stat().st_size for p in files.weights),
        **{key: record[key] for key in ("source", "revision", "fingerprint", "parent", "generation")},
        **_described(files),
    )


def verify(lake: Lake, slug: str) -> None:
    """Read a student's files again. Damaged if they look untouched but are not what they were. UserError as `get`."""
    info = get(lake, slug)
    files = inspect(info.path)
    with readable(info.path):
        if files.fingerprint() != info.fingerprint:
            raise Damaged(info.path, "its weights, configuration or tokenizer are not what they were (SHA-256)")


def _is_ours(lake: Lake, files: Files) -> bool:
    """Whether the program itself wrote these files. Those of others may become another checkpoint at any time."""
    made = [(lake.home / folder).resolve() for folder in ("students", "checkpoints")]
    return all(any(path.resolve().is_relative_to(place) for place in made) for path in files.weights)


def _described(files: Files) -> dict[str, Any]:
    """Architecture, vocabulary and positions, as the configuration says."""
    text = files.config.get("text_config") or files.config
    try:
        return {
            "architecture": str((files.config.get("architectures") or ["unknown"])[0]),
            "vocab_size": int(text.get("vocab_size") or 0),
            "max_positions": int(next((text[k] for k in _POSITIONS if text.get(k)), 0)),
            "caps_logits": any(text.get(k) for k in _CAPS),
        }
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        config = files.directory / "config.json"
        raise UserError(f"{config} holds a value of the wrong kind: {error}", "save the checkpoint again") from None


def _collect(origin: sources.Origin, aside: Path) -> tuple[Files, str]:
    """Fill `aside` with the checkpoint: converted into it, or as links to where its files lie."""
    aside.mkdir(parents=True)
    if origin.built_once:
        return inspect(sources.convert_packaged(aside)), ""
    directory, revision = sources.fetch(origin)
    files = inspect(directory)
    for path in files.all:
        # Not resolved to the end: the hub cache's own links may move, and a relinked source is a changed source.
        (aside / path.name).symlink_to(_target(path.absolute(), aside))
    return files, revision


def _target(file: Path, aside: Path) -> Path | str:
    """Relative for files of the home, so that a student that was finetuned here moves with it."""
    home, real = aside.parent.parent.resolve(), file.parent.resolve() / file.name
    return os.path.relpath(real, home / "students" / aside.name) if real.is_relative_to(home) else file


def _given(source: str, origin: sources.Origin) -> str:
    return str(Path(source).expanduser().absolute()) if origin.local else origin.source


def _is_taken(known: dict, source: str, origin: sources.Origin, replace: bool) -> bool:
    same = known["source"] == origin.source or known.get("given") == _given(source, origin)
    return not same and not _gone(known["source"]) and not (replace and sources.of_the_hub(known["source"]))


def _gone(source: str) -> bool:
    try:
        return Path(source).is_absolute() and not Path(source).exists()
    except OSError:  # it may be there, where we may not look
        return False


def _links(path: Path) -> dict[str, Path]:
    return {p.name: p.readlink() for p in path.iterdir() if p.is_symlink()}


def _ancestry(lake: Lake, files: Files) -> dict[str, str | int]:
    """Parent and generation of a checkpoint this project finetuned: it lies in `checkpoints/<parent>/<run>`."""
    made = (lake.home / "checkpoints").resolve()
    if not files.directory.is_relative_to(made):
        return {"parent": "", "generation": 0}
    parent = files.directory.relative_to(made).parts[0]
    before = folders.known(lake, parent)
    return {"parent": parent, "generation": (before["generation"] if before else 0) + 1}
