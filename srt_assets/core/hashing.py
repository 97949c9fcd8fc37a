"""Content ids and fingerprints: the same facts give the same hex digits on every machine, in every run."""

import hashlib
import json
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str).encode()


class Fingerprint(str):
    """A hash that remembers what it was made of, so that a manifest can say later what has changed."""

    facts: dict[str, Any]


def fingerprint(**facts: Any) -> Fingerprint:
    """SHA-256 (64 hex digits) of the canonical JSON of the facts; the order they are named in does not matter."""
    made = Fingerprint(hashlib.sha256(_canonical(facts)).hexdigest())
    made.facts = facts
    return made


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, read in pieces so that size does not matter."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _texts(*texts: str) -> str:
    # surrogatepass: JSON may hold lone surrogates (\ud800); they still need an id of their own.
    text = json.dumps(texts, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sample_id(instruction: str, input: str, response: str) -> str:
    """Id of a record: first 16 hex digits of the SHA-256 of its texts as a UTF-8 JSON array (Python's `json.dumps`).

    The texts count exactly as read: a trailing space makes another record.
    """
    return _texts(instruction, input, response)


def content_key(instruction: str, input: str, response: str) -> str:
    """Key of a candidate's texts: what decides whether its scores can be used again (16 hex digits)."""
    return _texts(instruction, input, response)
