"""Content ids and fingerprints. Equal facts give equal hex digits on every machine and in every run."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srt_assets.core.files import opened


def digest(**facts: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of the facts; their order does not matter.

    TypeError for values that JSON cannot hold, such as a set, which has no fixed order.
    """
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Fingerprint:
    """The inputs of an artefact: named facts and one digest of all of them. Fingerprints are compared by digest."""

    facts: Mapping[str, Any] = field(compare=False)
    digest: str

    @classmethod
    def of(cls, **facts: Any) -> "Fingerprint":
        """The fingerprint of these facts. TypeError for values that JSON cannot hold."""
        return cls(facts, digest(**facts))

    def changed_since(self, before: Mapping[str, Any]) -> set[str]:
        """Names of the facts that differ from `before`, including facts that only one side has."""
        return {name for name in {*self.facts, *before} if not _same(self.facts.get(name), before.get(name))}


def _same(one: Any, other: Any) -> bool:
    # One value was read from JSON, where a tuple becomes a list.
    return digest(value=one) == digest(value=other)


def file_sha256(path: Path | str) -> str:
    """SHA-256 of an ordinary file's bytes, read in pieces. NoFile if it is no ordinary file."""
    with opened(Path(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _texts(*texts: str) -> str:
    # surrogatepass: JSON may hold lone surrogates (\ud800); they still need an id of their own.
    text = json.dumps(texts, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sample_id(instruction: str, input: str, response: str) -> str:
    """Id of a record: first 16 hex digits of the SHA-256 of its texts as a UTF-8 JSON array (Python's `json.dumps`).

    The texts are hashed exactly as read: a trailing space gives another id.
    """
    return _texts(instruction, input, response)


def content_key(instruction: str, input: str, response: str) -> str:
    """Key of a candidate's texts (16 hex digits). Scores are reused for candidates with the same key."""
    return _texts(instruction, input, response)
