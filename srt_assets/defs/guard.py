"""An ASGI guard in front of Dagster's web server, which has no login.

Anyone who can reach the web server may start and delete runs. It listens on loopback only. But any web page that the
user has open can send requests to it through the browser: with a form or a script, or under the page's own host name
that now resolves to 127.0.0.1 (DNS rebinding). So the guard requires this server's name as Host; a request sent by a
page must come from a page of this server; and mutations must come by POST, to which browsers add the Origin.

This file does not use Dagster. It knows only that GraphQL requests go to `/graphql`.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse
from starlette.responses import PlainTextResponse

from srt_assets.text import printable

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

NAMES = ("127.0.0.1", "localhost", "[::1]")
_LONGEST = 200


class Refused(Exception):
    """A refused request: HTTP status and one sentence."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Guard:
    """An ASGI application that passes requests on to another application unless `check` refuses them."""

    def __init__(self, app: App, port: int) -> None:
        self._app, self._port = app, port
        self._hosts = {f"{name}:{port}" for name in NAMES} | (set(NAMES) if port == 80 else set())
        self._origins = {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            self.check(scope)
        except Refused as refused:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})  # before accepting: the server answers 403
                return
            headers = {"Allow": "POST"} if refused.status == 405 else {}
            await PlainTextResponse(f"{refused.why}\n", refused.status, headers)(scope, receive, send)
            return
        await self._app(scope, receive, _unframed(send))

    def check(self, scope: Scope) -> None:
        """Raise Refused if the request has another Host, comes from another site's page, or is a mutation by GET."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip().lower())
        hosts = headers.get("host", [])
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            raise Refused(
                403,
                f"{_named(hosts, 'no host')} is not allowed: open http://127.0.0.1:{self._port}; "
                f"a proxy must send Host: 127.0.0.1:{self._port} (docs/operations.md of srt-assets)",
            )
        strangers = [origin for origin in headers.get("origin", []) if origin not in self._origins]
        if strangers:
            raise Refused(403, f"a page of {_named(strangers)} may not use this server")
        site, mode, dest = (headers.get(f"sec-fetch-{name}", [""])[0] for name in ("site", "mode", "dest"))
        reading = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        followed_link = reading and mode == "navigate" and dest == "document"
        if site not in ("", "same-origin", "none") and not followed_link:
            raise Refused(403, "a page of another site may not use this server")
        if scope["type"] == "http" and scope["method"] != "POST" and scope["path"].rstrip("/").endswith("/graphql"):
            queries = parse_qs(scope["query_string"].decode("latin-1")).get("query", [])
            if not all(map(_only_asks, queries)):
                raise Refused(405, "a GraphQL operation other than a query is taken by POST only")


def _only_asks(text: str) -> bool:
    """Whether every operation of a GraphQL document is a query. True for invalid GraphQL, which the server refuses."""
    try:
        document = parse(text)
    except GraphQLError:
        return True
    operations = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
    return all(node.operation is OperationType.QUERY for node in operations)


def _named(values: list[str], none: str = "") -> str:
    text = printable(", ".join(values))
    return f"'{text[:_LONGEST]}'" if values else none


def _unframed(send: Send) -> Send:
    """Forbid other sites to show this page in a frame (clickjacking)."""

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"x-frame-options", b"SAMEORIGIN")]
        await send(message)

    return sending
