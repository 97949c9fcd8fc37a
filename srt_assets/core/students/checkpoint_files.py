"""Finds, checks and fingerprints the files of a checkpoint directory without loading the model.

Reads only file headers and needs no torch. Only the fingerprint reads the weights. Loading is in `loading.py`.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from srt_assets.core import files
from srt_assets.core.errors import UserError
from srt_assets.core.hashing import digest, file_sha256
from srt_assets.core.students import headers, plausible, unfit
from srt_assets.core.students.headers import Held
from srt_assets.paths import shown

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
_A_TOKENIZER = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "tekken.json")
# Keys of config.json that differ for the same checkpoint on another machine or after another save.
_NOT_IDENTITY = ("_name_or_path", "transformers_version")


@dataclass(frozen=True)
class Files:
    """The files that make up a checkpoint; `inspect` has checked that all of them exist and are complete."""

    directory: Path
    weights: tuple[Path, ...]
    tokenizer: tuple[Path, ...]
    others: tuple[Path, ...]
    config: dict
    held: Held

    @property
    def n_parameters(self) -> int:
        return self.held.numbers

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.directory / "config.json", *self.weights, *self.tokenizer, *self.others)

    def fingerprint(self) -> str:
        """Hash of the content of config, tokenizer and weights; independent of file times and paths."""
        return digest(
            config={k: v for k, v in self.config.items() if k not in _NOT_IDENTITY},
            tokenizer={p.name: file_sha256(p) for p in self.tokenizer},
            weights={p.name: file_sha256(p) for p in self.weights},
        )

    def signature(self) -> str:
        """Hash of the files' stat values; it changes whenever a file is replaced or rewritten. Cheap to compute."""
        stats = {p.name: p.stat() for p in self.all}
        return digest(**{name: [s.st_size, s.st_mtime_ns, s.st_ino] for name, s in stats.items()})


@contextmanager
def readable(directory: Path) -> Iterator[None]:
    """Turn an OSError about a checkpoint's files (permissions, a dead mount) into a UserError."""
    try:
        yield
    except OSError as error:
        name = error.filename or directory
        raise UserError(f"{name} cannot be read: {error.strerror}", "make it readable for this user") from None


def inspect(directory: Path) -> Files:
    """Check a checkpoint directory. UserError names the file that is missing, cut short, unsafe or unreadable."""
    with readable(directory):
        if not directory.is_dir():
            raise UserError(f"{directory} is not a directory", "give the folder of a saved Hugging Face checkpoint")
        if shown(directory) != str(directory):  # tables and logs cannot store such a name
            raise UserError(f"the name {shown(directory)} is not UTF-8", "rename it")
        config, weights, contents = model_of(directory)
        tokenizer = _there(directory, TOKENIZER_FILES, files.TOKENIZER)
        if not any(p.name in _A_TOKENIZER for p in tokenizer):
            raise UserError(
                f"{directory} has no tokenizer (no {', '.join(_A_TOKENIZER)})",
                "save it there: AutoTokenizer.from_pretrained(base).save_pretrained(directory)",
            )
        others = _there(directory, (INDEX, "generation_config.json"), files.RECORD)
        return Files(directory, weights, tokenizer, others, config, contents)


def model_of(directory: Path) -> tuple[dict, tuple[Path, ...], Held]:
    """Configuration, weight files and their contents. UserError as `inspect`, or if they cannot belong together."""
    unfit.check_folder(directory)
    config = _read_json(directory / "config.json", "a checkpoint needs its model configuration")
    unfit.check_config(directory, config)
    weights = _weights(directory)
    contents = headers.held(weights)
    if contents.strange:
        raise UserError(f"{directory} {contents.strange}", contents.remedy)
    plausible.check(config, directory / "config.json", contents)
    return config, weights, contents


def _there(directory: Path, names: tuple[str, ...], limit: int) -> tuple[Path, ...]:
    """The files of this list that exist. NoFile for one that is no ordinary file, or too large."""
    there = tuple(path for name in names if files.is_there(path := directory / name))
    for path in there:
        if path.stat().st_size > limit:
            raise files.NoFile(path, f"is larger than {limit >> 20} MB, which no file of this kind is")
    return there


def _weights(directory: Path) -> tuple[Path, ...]:
    index, single = directory / INDEX, directory / SINGLE
    if files.is_there(index):
        shards = _read_json(index, "it says which shard holds which tensor").get("weight_map", {})
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise UserError(f"{index} does not say which shard holds which tensor", "save the checkpoint again")
        names = sorted(set(shards.values()))
        for name in names:
            # A shard's name is untrusted input: it must not lead out of the directory.
            if Path(name).name != name:
                raise UserError(f"{index} names a shard outside its directory: {name!r}", "save the checkpoint again")
            if not files.is_there(directory / name):
                raise UserError(f"{directory} lacks the shard {name} that {INDEX} names", "copy the missing file")
        if names:
            return tuple(directory / name for name in names)
    if files.is_there(single):
        return (single,)
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in directory.glob(pattern))
    if pickles:
        raise UserError(
            f"{directory} has its weights as pickle only ({pickles[0]}), which can run code when it is read",
            "save it as safetensors: model.save_pretrained(directory)",
        )
    unfit.check_weights(directory)
    raise UserError(f"{directory} has no weights ({SINGLE} or {INDEX})", "wait until it is complete, or save it again")


def _read_json(path: Path, why: str) -> dict:
    try:
        found = json.loads(files.read_text(path))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}", why) from None
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}", "save the checkpoint again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} does not hold a JSON object", "save the checkpoint again")
    return found


def slugify(name: str) -> str:
    """Turn a name into a key that is safe in paths, partitions and SQL: lower case letters, digits, `.`, `_`, `-`."""
    slug = re.sub(r"\.{2,}", ".", re.sub(r"[^a-z0-9._-]+", "-", name.lower())).strip("-._")[:80]
    if not slug:
        raise UserError(f"no key can be made of the name {name!r}", "give a name with letters or digits")
    return slug
