"""Classifies errors of a call: retry, give the record up, or stop the run. What the run then does is in `engine.py`.

HTTP status and error code decide. Words of the message count only for providers that report throttling in no other way.
LiteLLM classifies some errors by words of the message (a 400 whose text says "rate limit" becomes a RateLimitError), so
the HTTP answer at the root of the exception chain takes precedence over LiteLLM's class.
"""

import errno
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from srt_assets.core.masking import redact

# throttled: wait, without counting an attempt. transient: retry. record: this request cannot succeed. stop: none can.
Action = Literal["throttled", "transient", "record", "stop"]
# The request was sent but no usable answer came. The provider may bill it, so the budget counts its highest price.
PERHAPS_BILLED = ("timeout", "connection", "bad_reply", "unexpected")
# Throttling as an HTTP status, as an error code in the body, and in the words of the few providers that send a 400.
_NOT_NOW = {429: "throttled", 503: "overloaded", 529: "overloaded"}
_NOT_NOW_CODES = {
    "ThrottlingException", "throttling", "TooManyRequestsException", "too_many_requests", "rate_limit_exceeded",
    "rate_limit_error", "RESOURCE_EXHAUSTED", "slow_down", "overloaded", "overloaded_error", "engine_overloaded_error",
    "ServiceUnavailableException", "service_unavailable", "UNAVAILABLE", "ModelNotReadyException", "server_busy",
}  # fmt: skip
_NOT_NOW_CODES = {code.casefold() for code in _NOT_NOW_CODES}
_NOT_NOW_WORDS = re.compile(
    r"\bplease (?:wait|slow down)\b|\bwait before (?:trying|retrying|sending)\b"
    r"|\b(?:try|retry)(?:ing)? again (?:later|in \d)"
    r"|\btoo many (?:tokens|requests)\b[^.]{0,40}\b(?:wait|retry|try again|per (?:second|minute|hour|day))\b"
    r"|\bthrottl(?:ed|ing)\b"
    r"|\b(?:model|server|engine|service) is (?:currently |temporarily )?(?:overloaded|busy|at capacity)\b",
    re.IGNORECASE,
)
_LITELLM_SAYS = re.compile(r"^(?:litellm\.\w+: )?(?:\w+: )?(?:\w+Exception - )?")
_STOPPING = {401: "authentication", 402: "no_funds", 403: "permission", 404: "not_found"}
_MAX_ERROR_CHARS = 500
# Raised by the clients for an answer that breaks the API's schema, for example a usage field of the wrong type.
_UNREADABLE = {"JSONDecodeError", "ValidationError", "APIResponseValidationError", "UnicodeDecodeError"}
_UNREADABLE |= {"TypeError", "KeyError", "AttributeError"}
# Raised by the clients before they send anything, because of the settings: by type; ValueError by its module (_PLACES).
_SETTINGS = {
    **dict.fromkeys(("InvalidURL", "InvalidUrlClientError", "NonHttpUrlClientError", "UnsupportedProtocol"), "address"),
    **dict.fromkeys(("InvalidUrlRedirectClientError", "NonHttpUrlRedirectClientError", "IDNAError"), "address"),
    **dict.fromkeys(("ImportError", "ModuleNotFoundError"), "package"),
    **dict.fromkeys(("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"), "authentication"),
    **dict.fromkeys(("ProfileNotFound", "NoRegionError", "RefreshError"), "authentication"),
    "LocalProtocolError": "header",
    "SSLCertVerificationError": "certificate",
}
# By prefix of the module's name; the first match counts.
_PLACES = {"aiohttp._http_writer": "header", "aiohttp.client_reqrep": "header", "multidict": "header"}
_PLACES |= {"aiohttp.client": "address", "yarl": "address", "httpx._url": "address", "encodings.idna": "address"}
_OF_NETWORK = {"aiohttp", "anyio", "h11", "h2", "httpcore", "httpx", "litellm", "openai", "ssl", "zlib"}
_UNREACHABLE = {"ConnectError", "ClientConnectorError", "ClientConnectorDNSError", "ConnectionRefusedError", "gaierror"}


@dataclass(frozen=True)
class Failure:
    """`kind` is the ledger's status: throttled, overloaded, timeout, connection, server_error, bad_reply, bad_request,
    context_length, content_filter, unreadable_reply, authentication, permission, not_found, no_funds, unreachable,
    open_files; for faults of the settings address, header, package, certificate; or unexpected. `retry_after_s`: the
    wait that the server asked for. `status`: the HTTP status, if a server answered. `param`: the parameter that the
    server calls wrong. `by_words`: only the words of the message say that it is throttled. For an unreadable reply,
    `billed` is its usage (tokens sent, tokens received) and `reply` its whole text.
    """

    action: Action
    kind: str
    error_type: str
    message: str
    retry_after_s: float | None = None
    billed: tuple[int | None, int | None] = (None, None)
    reply: str | None = None
    status: int | None = None
    by_words: bool = False
    param: str | None = None

    @property
    def perhaps_billed(self) -> bool:
        return self.kind in PERHAPS_BILLED

    @property
    def told(self) -> str:
        """HTTP status (or kind) and the beginning of the message, for people."""
        words = " ".join(without_class(self.message).split())[:120]
        return f"{self.status} {words}" if self.status else f"{self.kind}, {words}"

    @property
    def columns(self) -> dict[str, Any]:
        """The ledger's columns for this failure, without the cost."""
        usage = dict(zip(("prompt_tokens", "completion_tokens"), self.billed, strict=True))
        return {"status": self.kind, "error_type": self.error_type, "error": self.message, "reply": self.reply} | usage


def without_class(message: str) -> str:
    """The message without the class names that LiteLLM puts before it."""
    return _LITELLM_SAYS.sub("", message, count=1)


class Unreadable(Exception):
    """An answer that holds no readable reply, or an error instead of one."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def classify(error: Exception) -> Failure:
    """The failure behind an exception: by its HTTP answer, else by the types in its chain, else by LiteLLM's class."""
    from litellm import exceptions as of_litellm

    if isinstance(error, Unreadable):
        return error.failure
    chain = list(_chain(error))
    names = {type(e).__name__ for e in chain}

    def failure(action: Action, kind: str) -> Failure:
        # LiteLLM's message for a broken connection is only "Connection error."; the root of the chain says why.
        message = str(chain[-1]) or str(error)
        return Failure(action, kind, type(error).__name__, redact(message)[:_MAX_ERROR_CHARS])

    status, headers, code = _http_answer(chain)
    if status is not None:
        found = of_http(status, code, type(error).__name__, str(error), retry_after(headers))
        found = replace(found, param=_param(chain))
        if found.kind == "bad_request" and isinstance(error, of_litellm.ContextWindowExceededError):
            return replace(found, kind="context_length")
        if found.kind == "bad_request" and isinstance(error, of_litellm.ContentPolicyViolationError):
            return replace(found, kind="content_filter")
        return found
    if any(isinstance(e, OSError) and e.errno == errno.EMFILE for e in chain):
        return failure("stop", "open_files")
    if kind := next((kind for e in chain if (kind := _settings_fault(e))), None):
        return failure("stop", kind)
    if any("Timeout" in name for name in names):
        return failure("transient", "timeout")
    if isinstance(error, of_litellm.RateLimitError | of_litellm.ServiceUnavailableError):
        return failure("throttled", "throttled" if isinstance(error, of_litellm.RateLimitError) else "overloaded")
    if names & _UNREACHABLE:
        return failure("transient", "unreachable")
    if names & _UNREADABLE:
        return failure("transient", "bad_reply")
    if isinstance(error, of_litellm.AuthenticationError):
        return failure("stop", "authentication")
    if isinstance(error, of_litellm.BadRequestError | of_litellm.UnsupportedParamsError):
        return failure("stop", "bad_request")  # LiteLLM refused before sending: the settings are wrong, not the record
    root = chain[-1]
    of_network = isinstance(root, OSError | EOFError) or type(root).__module__.split(".")[0] in _OF_NETWORK
    return failure("transient", "connection" if of_network else "unexpected")


def _settings_fault(error: BaseException) -> str | None:
    """The kind of failure if the settings or the environment are at fault, else None."""
    if isinstance(error, UnicodeEncodeError):
        return "header" if error.encoding == "ascii" else None
    if isinstance(error, ssl.SSLError) and getattr(error, "reason", "") in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return "address"  # the URL says https://, but the server speaks http://
    if type(error) in (ValueError, UnicodeError):
        place = _raised_in(error)
        return next((kind for start, kind in _PLACES.items() if place.startswith(start)), None)
    return _SETTINGS.get(type(error).__name__)


def _raised_in(error: BaseException) -> str:
    """The module that raised the error."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__")) if trace else ""


def of_http(
    status: int, code: str | None, error_type: str, message: str, retry_after_s: float | None = None
) -> Failure:
    """The failure for an HTTP status and the error code in the body."""
    action: Action = "record"
    kind, by_words = "bad_request", False
    code = (code or "").casefold()
    if status == 429 and code == "insufficient_quota":
        action, kind = "stop", "no_funds"
    elif status in _NOT_NOW:
        action, kind = "throttled", _NOT_NOW[status]
    elif code in _NOT_NOW_CODES:
        action, kind = "throttled", "throttled"
    elif status in _STOPPING:
        action, kind = "stop", _STOPPING[status]
    elif status in (408, 409) or status >= 500:
        action, kind = "transient", "server_error"
    elif code == "context_length_exceeded":
        kind = "context_length"
    elif code in ("content_policy_violation", "content_filter"):
        kind = "content_filter"
    elif _NOT_NOW_WORDS.search(message):
        action, kind, by_words = "throttled", "throttled", True
    message = redact(message)[:_MAX_ERROR_CHARS]
    return Failure(action, kind, error_type, message, retry_after_s, status=status, by_words=by_words)


def of_body(error: Any) -> Failure:
    """The failure for an error in the body of an answer with status 200 (OpenRouter and some proxies send these)."""
    facts = error if isinstance(error, dict) else {}
    message = str(facts.get("message") or error)
    given = [value for value in (facts.get("code"), facts.get("status")) if isinstance(value, int)]
    status = next((value for value in given if 400 <= value < 600), 500)
    return of_http(status, code_of(facts), "ErrorInReply", message)


def answered_with_an_error(error: Exception) -> bool:
    """True if the server's answer was itself an error (a status of 400 or more)."""
    return (_http_answer(list(_chain(error)))[0] or 0) >= 400


def _chain(error: BaseException) -> Iterator[BaseException]:
    at: BaseException | None = error
    seen: set[int] = set()
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def _http_answer(chain: list[BaseException]) -> tuple[int | None, Mapping[str, str], str | None]:
    """Status, headers and error code of the HTTP answer nearest the root; status None if no server answered."""
    status: int | None = None
    headers: Mapping[str, str] = {}
    code: str | None = None
    for error in chain:
        code = code_of(getattr(error, "body", None)) or code
        response = getattr(error, "response", None)
        if type(error).__module__.split(".")[0] in ("httpx", "openai") and response is not None:
            status, headers = response.status_code, response.headers
            code = code or code_of(_json(response))
    return status, headers, code


def code_of(body: Any) -> str | None:
    """The error code in the body of an answer: the one that means throttling, else the first."""
    if not isinstance(body, dict):
        return None
    inner = body["error"] if isinstance(body.get("error"), dict) else body
    names = [str(inner[name]) for name in ("code", "type", "status", "__type") if inner.get(name)]
    return next((name for name in names if name.casefold() in _NOT_NOW_CODES), names[0] if names else None)


def _param(chain: list[BaseException]) -> str | None:
    """The parameter that an error in OpenAI's form calls wrong."""
    for error in chain:
        body = getattr(error, "body", None)
        inner = body.get("error", body) if isinstance(body, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get("param"), str):
            return inner["param"]
    return None


def _json(response: Any) -> Any:
    try:
        return response.json()
    except Exception:  # noqa: BLE001 - without readable JSON the HTTP status decides alone
        return None


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds the server asks to wait: `retry-after-ms`, or `retry-after` as seconds or as a date. Never negative.

    A date is compared with the server's own `date` header, if there is one, because our clock may differ.
    """
    if milliseconds := headers.get("retry-after-ms"):
        try:
            return max(0.0, float(milliseconds) / 1000)
        except ValueError:
            pass
    if not (value := headers.get("retry-after")):
        return None
    try:
        seconds = float(value)
    except ValueError:
        until, sent = _seconds(value), _seconds(headers.get("date", ""))
        if until is None:
            return None
        seconds = until - (sent if sent is not None else time.time() if now is None else now)
    return max(0.0, seconds) if seconds == seconds else None


def _seconds(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError):
        return None
