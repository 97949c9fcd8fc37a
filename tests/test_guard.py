"""The guard in front of Dagster's web server: who gets through, and nobody else. `make live` asks the real server."""

from urllib.parse import quote

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from srt_assets.defs.guard import Guard

PORT = 3000
HERE = "http://127.0.0.1:3000"
SOCKET = "ws://127.0.0.1:3000/graphql"
MUTATION = "mutation { launchRun }"
JSON = {"content-type": "application/json"}


@pytest.fixture
def client() -> TestClient:
    async def anything(request: Request) -> PlainTextResponse:
        return PlainTextResponse("through")

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    methods = ["GET", "POST", "PUT", "OPTIONS", "DELETE"]
    routes = [WebSocketRoute("/graphql", socket), Route("/{path:path}", anything, methods=methods)]
    return TestClient(Guard(Starlette(routes=routes), PORT), base_url=HERE)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost:3000"},
        {"host": "LOCALHOST:3000"},
        {"host": "[::1]:3000"},
        {"origin": HERE},
        {"origin": "http://localhost:3000"},
        {"origin": HERE, "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
    ],
)
def test_this_machine_s_own_pages_and_programs_get_through(client: TestClient, headers: dict[str, str]) -> None:
    for path in ("/", "/graphql", "/report_asset_materialization/raw_dataset", "/runs/1"):
        answer = client.post(path, json={"query": MUTATION}, headers=headers)
        assert (answer.status_code, answer.text) == (200, "through")
        assert client.get(path, headers=headers).status_code == 200
    with client.websocket_connect(SOCKET, headers=headers):
        pass


STRANGERS = [
    {"host": "evil.example:3000"},  # its name leads to 127.0.0.1 now
    {"host": "127.0.0.1"},
    {"host": "127.0.0.1:3001"},
    {"host": "127.0.0.1.evil.example:3000"},
    {"host": "localhost.:3000"},
    {"host": "0.0.0.0:3000"},
    {"host": ""},
    {"origin": "http://evil.example"},
    {"origin": "http://evil.example:3000"},
    {"origin": "http://127.0.0.1:8000"},
    {"origin": "https://127.0.0.1:3000"},
    {"origin": "http://127.0.0.1:3000.evil.example"},
    {"origin": "null"},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
]
# What a page may send to another server without asking it first.
SIMPLE = (
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "text/plain; application/json",
)


@pytest.mark.parametrize("headers", STRANGERS, ids=str)
def test_nobody_else_does(client: TestClient, headers: dict[str, str]) -> None:
    paths = ("/", "/graphql", "/server_info", "/download_debug/1", "/logs/a", "/notebook", "/report_asset_check/a")
    for path in paths:
        for method in ("GET", "POST", "OPTIONS"):
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 403 and answer.text.count("\n") == 1, (method, path, answer.text)
            assert "access-control-allow-origin" not in answer.headers
    for kind in SIMPLE:
        sent = client.post(f"/graphql?query={quote(MUTATION)}", headers={"content-type": kind, **headers})
        assert sent.status_code == 403
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(SOCKET, headers=headers):
        pass


def test_the_refusal_says_who_is_meant_and_what_to_do(client: TestClient) -> None:
    told = client.get("/", headers={"host": b"evil\x9b.example:3000"}).text
    assert "\\x9b.example:3000' is not allowed" in told and f"open {HERE}" in told and "Host: 127.0.0.1:3000" in told
    assert "http://evil.example" in client.get("/", headers={"origin": "http://evil.example"}).text
    assert len(client.get("/", headers={"host": "x" * 9000}).text) < 500


def test_two_hosts_are_none(client: TestClient) -> None:
    twice = [("host", "127.0.0.1:3000"), ("host", "evil.example")]
    assert client.get("/", headers=twice).status_code == 403


def test_a_link_to_a_page_may_be_followed(client: TestClient) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/runs/1", headers=headers).status_code == 200
    assert client.post("/runs/1", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "query",
    [
        MUTATION,
        "query a { version } mutation b { launchRun }",
        "subscription { events }",
        "# a comment\n mutation($x: Int) { launchRun(x: $x) }",
        "fragment f on Mutation { launchRun } mutation { ...f }",
    ],
)
def test_what_changes_something_comes_by_post(client: TestClient, query: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        for path in ("/graphql", "/graphql/", "/%67raphql", "/prefix/graphql"):
            url = f"{path}?query={quote(query)}&operationName=b"
            answer = client.request(method, url)
            assert answer.status_code == 405 and answer.headers["allow"] == "POST", url
            assert client.request(method, f"{path}?query=%7Bversion%7D&query={quote(query)}").status_code == 405
    assert client.post(f"/graphql?query={quote(query)}").status_code == 200


@pytest.mark.parametrize("query", ["{ version }", "query q { version }", "not graphql", ""])
def test_a_question_may_come_by_get(client: TestClient, query: str) -> None:
    assert client.get(f"/graphql?query={quote(query)}").status_code == 200


def test_no_other_page_frames_this_one(client: TestClient) -> None:
    assert client.get("/").headers["x-frame-options"] == "SAMEORIGIN"


def test_port_80_needs_no_number() -> None:
    client = TestClient(Guard(PlainTextResponse("through"), 80), base_url="http://127.0.0.1")
    assert client.get("/").status_code == 200
