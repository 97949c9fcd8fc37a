"""An OpenAI-compatible teacher on loopback: replies as a function of the request, faults on demand, measures its load.

In a thread: `with FakeOpenAI() as fake: fake.base`. As a process of its own: `python -m tests.fake_openai PORT-FILE`.
"""

import asyncio
import contextlib
import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REASONS = {200: "OK", 400: "Bad Request", 429: "Too Many Requests", 500: "Internal Server Error"}


@dataclass
class Plan:
    """What to do with one request. `fault`: '', a status, close, half, hang, trickle, garbage, empty, no_choices,
    error_body, refusal, usage; in a batch also expired, cancelled."""

    fault: str = ""
    text: Any = None
    finish_reason: Any = "stop"
    latency_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    usage: Any = "right"
    error: dict[str, Any] | None = None
    # Laid over the reply's choice and its message; a value of "gone" takes the field away.
    choice: dict[str, Any] = field(default_factory=dict)
    message: dict[str, Any] = field(default_factory=dict)


@dataclass
class Seen:
    """One request as the server saw it: arrival (seconds, monotonic), digest of its messages, what became of it."""

    at: float
    digest: str
    fault: str
    body: dict[str, Any]
    tokens: int = 0


def good_reply(body: dict[str, Any]) -> str:
    """A complete reply to what the last user message asks for, different for different requests."""
    last = body["messages"][-1]["content"]
    tag = digest_of(body)[:8]
    answer = f"A new and thorough answer {tag}. It has two sentences."
    if "response_format" in body:
        fields = body["response_format"]["json_schema"]["schema"]["required"]
        return json.dumps({name: f"{name} {tag}" for name in fields})
    if "[New Instruction]" in last:
        return f"It is vague.\n[New Instruction] Explain {tag} in depth. [End]\n[New Answer] {answer} [End]"
    return f"It is short.\n[Better Answer] {answer} [End]"


def digest_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()


class FakeOpenAI:
    """`plan(body, nth)` decides about the nth request (0-based) with these messages; default: a good reply."""

    def __init__(
        self, plan: Callable[[dict[str, Any], int], Plan] | None = None, keep_bodies: bool = True, port: int = 0
    ) -> None:
        self.plan = plan or (lambda body, nth: Plan())
        self.seen: list[Seen] = []
        self.paid: Counter[str] = Counter()
        self.in_flight = 0
        self.most_in_flight = 0
        self.port = port
        self._keep_bodies = keep_bodies
        self._times: Counter[str] = Counter()
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def calls(self) -> int:
        return len(self.seen)

    def __enter__(self) -> "FakeOpenAI":
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop and self._thread
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    async def serve(self, on_ready: Callable[[], None] = lambda: None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda loop, context: None)
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, limit=1 << 24, backlog=2048)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        on_ready()
        await self._stop.wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                lines = head.split("\r\n")
                method, path, _ = lines[0].split(" ")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                if path.endswith("/chat/completions"):
                    if not await self._chat(json.loads(raw), writer):
                        break
                else:
                    await self._other(method, path, headers, raw, writer)
        writer.close()

    async def _chat(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        digest = digest_of(body)
        nth = self._times[digest]
        self._times[digest] += 1
        plan = self.plan(body, nth)
        seen = Seen(time.monotonic(), digest, plan.fault, body if self._keep_bodies else {})
        self.seen.append(seen)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        status, payload = self.answer(body, plan, seen)
        try:
            if plan.latency_s:
                await asyncio.sleep(plan.latency_s)
            if plan.fault == "hang":
                await asyncio.sleep(3600)
            if plan.fault == "trickle":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
                while True:
                    writer.write(b"1\r\n \r\n")
                    await writer.drain()
                    await asyncio.sleep(0.05)
            if plan.fault == "close":
                return False
            if plan.fault == "half":
                writer.write(_http(status, payload, plan.headers)[: 60 + len(payload) // 2])
                await writer.drain()
                return False
            if status == 200 and plan.fault in ("", "usage"):
                self.paid[digest] += 1
            writer.write(_http(status, payload, plan.headers))
            await writer.drain()
            return True
        finally:
            self.in_flight -= 1

    def answer(self, body: dict[str, Any], plan: Plan, seen: Seen) -> tuple[int, bytes]:
        if plan.fault.isdigit():
            error = plan.error or {"message": "generated: rate limit words do not matter", "type": "t", "code": None}
            return int(plan.fault), json.dumps({"error": error}).encode()
        if plan.fault == "error_body":
            return 200, json.dumps({"error": plan.error}).encode()
        if plan.fault == "garbage":
            return 200, b"<html>a proxy's opinion</html>"
        text = "" if plan.fault == "empty" else good_reply(body) if plan.text is None else plan.text
        prompt = sum(len(m["content"]) for m in body["messages"]) // 4 + 8
        completion = len(str(text)) // 4 + 1
        seen.tokens = prompt + completion
        usage: Any = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        reply = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": plan.finish_reason,
                }
            ],
            "usage": usage if plan.usage == "right" else plan.usage,
        }
        if plan.fault == "refusal":
            reply["choices"][0]["message"] = {"role": "assistant", "content": None, "refusal": "I cannot do that."}
        if plan.fault == "no_choices":
            reply["choices"] = []
        for choice in reply["choices"]:
            _lay_over(choice["message"], plan.message)
            _lay_over(choice, plan.choice)
        return 200, json.dumps(reply).encode()

    # -- files and batches

    async def _other(
        self, method: str, path: str, headers: dict[str, str], raw: bytes, writer: asyncio.StreamWriter
    ) -> None:
        status, payload = 404, b"{}"
        if method == "POST" and path.endswith("/files"):
            boundary = headers["content-type"].split("boundary=")[1].encode()
            part = next(p for p in raw.split(b"--" + boundary) if b'name="file"' in p)
            name = f"file-{len(self._files)}"
            self._files[name] = part.split(b"\r\n\r\n", 1)[1].rstrip(b"\r\n")
            status, payload = 200, json.dumps(_file(name, len(raw))).encode()
        elif method == "POST" and path.endswith("/batches"):
            asked = json.loads(raw)
            name = f"batch-{len(self._batches)}"
            self._batches[name] = self._run_batch(name, asked["input_file_id"]) | {"metadata": asked.get("metadata")}
            status, payload = 200, json.dumps(self._batches[name] | {"status": "validating"}).encode()
        elif method == "GET" and path.split("?")[0].endswith("/batches"):
            newest = list(reversed(self._batches.values()))
            first = next((i + 1 for i, b in enumerate(newest) if f"after={b['id']}&" in f"{path}&"), 0)
            page = {"object": "list", "data": newest[first : first + 2], "has_more": first + 2 < len(newest)}
            status, payload = 200, json.dumps(page).encode()
        elif "/batches/" in path:
            status, payload = 200, json.dumps(self._batches[path.rsplit("/", 1)[1]]).encode()
        elif path.endswith("/content"):
            status, payload = 200, self._files[path.split("/")[-2]]
        writer.write(_http(status, payload, {}))
        await writer.drain()

    def _run_batch(self, name: str, file_id: str) -> dict[str, Any]:
        out, errors, ended = [], [], "completed"
        for line in self._files[file_id].decode().splitlines():
            item = json.loads(line)
            body, digest = item["body"], digest_of(item["body"])
            plan = self.plan(body, self._times[digest])
            self._times[digest] += 1
            seen = Seen(time.monotonic(), digest, plan.fault, body)
            self.seen.append(seen)
            status, payload = self.answer(body, plan, seen)
            row = {"id": f"r-{digest[:6]}", "custom_id": item["custom_id"]}
            if plan.fault in ("expired", "cancelled"):
                ended = plan.fault
                error = {"code": f"batch_{ended}", "message": "not done in time"}
                errors.append(json.dumps(row | {"response": None, "error": error}))
                continue
            if status == 200:
                self.paid[digest] += 1
            answer = {"status_code": status, "request_id": "r", "body": json.loads(payload)}
            (out if status == 200 else errors).append(json.dumps(row | {"response": answer, "error": None}))
        for kind, rows in (("output", out), ("error", errors)):
            self._files[f"{name}-{kind}"] = "\n".join(rows).encode()
        return {
            "id": name,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "input_file_id": file_id,
            "completion_window": "24h",
            "status": ended,
            "created_at": int(time.time()),
            "output_file_id": f"{name}-output" if out else None,
            "error_file_id": f"{name}-error" if errors else None,
            "request_counts": {"total": len(out) + len(errors), "completed": len(out), "failed": len(errors)},
        }


def _lay_over(facts: dict[str, Any], more: dict[str, Any]) -> None:
    facts |= more
    for name in [name for name, value in more.items() if value == "gone"]:
        del facts[name]


def _file(name: str, size: int) -> dict[str, Any]:
    facts = {"id": name, "object": "file", "bytes": size, "created_at": 1, "filename": "calls.jsonl"}
    return facts | {"purpose": "batch", "status": "processed"}


def _http(status: int, payload: bytes, headers: dict[str, str]) -> bytes:
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} {REASONS.get(status, 'Other')}\r\ncontent-type: application/json\r\n{more}"
    return f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload


def busiest_window(seen: list[Seen], span_s: float) -> tuple[int, int]:
    """Most requests and most tokens that arrived within any `span_s` seconds."""
    requests = tokens = first = running = 0
    for last, entry in enumerate(seen):
        running += entry.tokens
        while entry.at - seen[first].at >= span_s:
            running -= seen[first].tokens
            first += 1
        requests, tokens = max(requests, last - first + 1), max(tokens, running)
    return requests, tokens


def main() -> None:
    """Serve until killed: writes its port to the file named first; the second argument is a latency in seconds."""
    latency = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    fake = FakeOpenAI(lambda body, nth: Plan(latency_s=latency), keep_bodies=False)
    log = Path(sys.argv[3]) if len(sys.argv) > 3 else None

    async def write_log() -> None:
        done = 0
        while log is not None:
            await asyncio.sleep(1.0)
            with log.open("a") as file:
                for entry in fake.seen[done:]:
                    file.write(f"{entry.at} {entry.tokens} {entry.digest} {fake.most_in_flight}\n")
                done = len(fake.seen)

    async def serve() -> None:
        task = asyncio.create_task(write_log())
        await fake.serve(lambda: Path(sys.argv[1]).write_text(str(fake.port)) and None)
        task.cancel()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
