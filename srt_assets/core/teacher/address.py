"""Checks of server addresses. Calls to a server do not belong here.

`teacher.api_base` is stored in the ledger, in manifests and in messages, so it must not contain a key. An error about a
refused address does not quote the address.
"""

import os
import re
from urllib.parse import parse_qsl, unquote, urlsplit

from srt_assets.core.masking import without_secrets

_FROM_ENVIRONMENT = "keys come from the environment, as OPENAI_API_KEY does"
_SECRET_NAME = re.compile(r"key|token|secret|pass|auth|sig|cred|code", re.IGNORECASE)
# Values allowed in the query of an address: short words, and Azure's API version.
_PLAIN_VALUE = re.compile(r"[\w.-]{0,15}|\d{4}-\d\d-\d\d(-preview)?")
_KEY = re.compile(r"\bsk-(?=[\w-]*\d)[\w-]{6,}")
# The variables in which LiteLLM looks for an address that the settings do not give.
_VARIABLE = r"\w+_API_BASE|(OPENAI|ANTHROPIC|{provider})_(BASE_URL|API_URL|URL|ENDPOINT)"


def fault(address: str) -> str | None:
    """What is wrong with an address, without quoting it; None if the address may be used and stored."""
    if not address.lower().startswith(("http://", "https://")):
        # Without a scheme the clients wait for a host that never answers.
        return "write the whole URL, http://… or https://…"
    if re.search(r"[\s\\\x00-\x1f\x7f]", address):
        return "it has a blank or another character that no address has"
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    # In `http://name:password` urlsplit takes the password for a port, so look for the @ first.
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
    """(variable, fault) of the first invalid address in the environment variables that LiteLLM reads; None if none."""
    names = re.compile(_VARIABLE.format(provider=re.escape(provider.upper())))
    for name, value in sorted(os.environ.items()):
        if value and names.fullmatch(name) and not name.startswith("SRT_") and (why := fault(value)):
            return name, why
    return None
