"""Masks secrets in texts before they are stored or shown. Secrets come from environment variables or look like keys.

Every text from outside (a server's reply, a library's error, a stack trace) passes `redact`. Messages of this program,
which may quote such a text, pass `without_secrets` when they are made. Mask a text before you cut it, because half a
key is not recognized.
"""

import base64
import html
import json
import os
import re
import sys
import threading
import traceback
from functools import lru_cache
from urllib.parse import urlsplit

MASK = "***"
# Shorter values are not masked: too many of them are ordinary words.
_SHORTEST = 8
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS", re.IGNORECASE)
# Patterns that match nothing but secrets.
_CERTAIN = [
    re.compile(r"(?<=://)[^\s/?#@'\"]+@"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(
        r"\bsk-(?=[\w-]*\d)[\w*-]{16,}|\bAIza[\w-]{30,}|\bgh[pousr]_\w{20,}|\b(?:hf|gsk)_\w{20,}|\bAKIA[A-Z\d]{16}\b"
    ),
]
_BEARER = re.compile(r"(?i)\b(bearer\s+)[^\s'\",;)}\]]{4,}")
# Masked only in texts from outside: messages of this program have names of files and settings of this form.
_LIKELY = re.compile(r"\b(?:sk|gsk|key|xai|pk)-[\w*-]{6,}", re.IGNORECASE)
_NAMED = re.compile(
    r"(?i)((?:authorization|api[-_ ]?key|access[-_]?token|client[-_]?secret|password|passwd|secret)"
    r"\\?['\"]?\s*[:=]\s*\\?['\"]?(?:(?:bearer|basic)\s+)?)[^\s'\"\\,;&)}\]]{4,}"
)


def without_secrets(text: str) -> str:
    """The text with secret variables' values masked, and with certain keys and passwords in URLs masked."""
    text = text.encode("utf-8", "replace").decode()  # lone surrogates cannot be stored
    if pattern := _of_values(_secret_values()):
        text = pattern.sub(MASK, text)
    for certain in _CERTAIN:
        text = certain.sub(lambda found: MASK + "@" * found[0].endswith("@"), text)
    return _BEARER.sub(rf"\1{MASK}", text)


def redact(text: str) -> str:
    """A text from outside, with everything masked that is or may be a key."""
    return _LIKELY.sub(MASK, _NAMED.sub(rf"\1{MASK}", without_secrets(text)))


def mask_uncaught() -> None:
    """Print a redacted stack trace for uncaught exceptions, in all threads."""

    def show(kind: type[BaseException], error: BaseException | None, trace: object, thread: object = None) -> None:
        if error is not None:
            print(redact("".join(traceback.format_exception(error))), file=sys.stderr, end="")

    sys.excepthook = show
    threading.excepthook = lambda args: show(*args)


def _secret_values() -> tuple[str, ...]:
    found = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and not _is_place(value)}
    # The password in the URL of a proxy or database.
    found |= {password for value in os.environ.values() if "://" in value and (password := _password(value))}
    return tuple(sorted(value for value in found if len(value.strip()) >= _SHORTEST))


def _is_place(value: str) -> bool:
    """Whether the value is the path of an existing file or a URL: neither is a secret, even if it leads to one."""
    return "://" in value or (value.startswith(("/", "~")) and os.path.exists(value))  # noqa: PTH110 - never raises


def _password(url: str) -> str:
    try:
        return urlsplit(url).password or ""
    except ValueError:
        return ""


@lru_cache(maxsize=8)
def _of_values(values: tuple[str, ...]) -> re.Pattern[str] | None:
    """A pattern that matches these values in all forms in which a server or library may quote them."""
    forms = {form for value in values for text in (value, value.strip()) for form in _forms(text)}
    # A value that was cut: its first half and what follows.
    forms |= {rf"{re.escape(value[: max(12, len(value) // 2)])}[\w*+/=.-]*" for value in values if len(value) > 16}
    # The longest first, so that a value with its line end matches before the value without it.
    return re.compile("|".join(sorted(forms, key=len, reverse=True))) if forms else None


def _forms(value: str) -> set[str]:
    """Patterns of a value: unchanged, escaped by Python, JSON, HTML or in a URL, as bytes, in hex, in base 64."""
    raw = value.encode("utf-8", "surrogateescape")
    quoted = {value, repr(value)[1:-1], str(raw)[2:-1], json.dumps(value)[1:-1], html.escape(value), raw.hex()}
    quoted |= {raw.decode("latin-1"), raw.decode("utf-8", "replace"), value.encode("utf-8", "replace").decode()}
    quoted |= _base64(raw)
    # In a URL any character may be percent-encoded or not.
    in_url = "".join(f"(?:{re.escape(c)}|{_percent(c)})" for c in value)
    return {re.escape(form) for form in quoted if form} | {in_url}


def _percent(character: str) -> str:
    encoded = "".join(f"%{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
    return rf"(?i:{encoded}){'|[+]' if character == ' ' else ''}"


def _base64(raw: bytes) -> set[str]:
    """The middle of its base 64 for each number of bytes (mod 3) that may precede it, as `user:` in a login."""
    found = set()
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(b"\0" * before + raw).decode()
            found.add(text[(before * 8 + 5) // 6 : (before + len(raw)) * 8 // 6])
    return {text for text in found if len(text) >= _SHORTEST}
