"""Which addresses of a server may be written down: `teacher.api_base` stands in the ledger, in manifests, in messages.

So there is no key in it, and what we say of one that is refused does not repeat it.
"""

import os
import re
from urllib.parse import parse_qsl, unquote, urlsplit

from srt_assets.core.masking import without_secrets

_FROM_ENVIRONMENT = "keys come from the environment, as OPENAI_API_KEY does"
_SECRET_NAME = re.compile(r"key|token|secret|pass|auth|sig|cred|code", re.IGNORECASE)
# What the query of an address may say; Azure's API version is the one that is known.
_PLAIN_VALUE = re.compile(r"[\w.-]{0,15}|\d{4}-\d\d-\d\d(-preview)?")
_KEY = re.compile(r"\bsk-(?=[\w-]*\d)[\w-]{6,}")
# The variables in which LiteLLM looks for an address that the settings do not give.
_VARIABLE = r"\w+_API_BASE|(OPENAI|ANTHROPIC|{provider})_(BASE_URL|API_URL|URL|ENDPOINT)"


def fault(address: str) -> str | None:
    """What is wrong with an address, in words that do not repeat it; None if it may be used and written down."""
    if not address.lower().startswith(("http://", "https://")):
        # Without its scheme it is taken for a host that never answers.
        return "write the whole URL, http://… or https://…"
    if re.search(r"[\s\\\x00-\x1f\x7f]", address):
        return "it has a blank or another character that no address has"
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    # Of `http://name:password` the password is no port.
    if "@" in address.partition("://")[2].partition("/")[0]:
        return f"it has a user name or a password in it; {_FROM_ENVIRONMENT}"
    if not host:
        return "it is no address of a server, which is http://HOST:PORT/PATH"
    if "#" in address:
        return f"it has a part after #, which no server is sent; {_FROM_ENVIRONMENT}"
    told = parse_qsl(parts.query, keep_blank_values=True)
    if any(_SECRET_NAME.search(name) or not _PLAIN_VALUE.fullmatch(value) for name, value in told):
        return f"what stands after its ? may be a key; {_FROM_ENVIRONMENT}"
    for text in (address, unquote(address)):
        if _KEY.search(text) or without_secrets(text) != text:
            return f"there is a key in it; {_FROM_ENVIRONMENT}"
    return None


def fault_in_environment(provider: str) -> tuple[str, str] | None:
    """(variable, what is wrong with it) of the first address in LiteLLM's variables that must not be used."""
    names = re.compile(_VARIABLE.format(provider=re.escape(provider.upper())))
    for name, value in sorted(os.environ.items()):
        if value and names.fullmatch(name) and not name.startswith("SRT_") and (why := fault(value)):
            return name, why
    return None
