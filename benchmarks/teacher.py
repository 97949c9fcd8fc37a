"""What the teacher's flow costs and keeps, against a fake OpenAI server in its own process.

    python -m benchmarks.teacher efficiency   # 2 s replies, 256 at a time: ideal time / real time, CPU per call
    python -m benchmarks.teacher rpm          # 300 requests a minute: the busiest 60 s the server saw, the rate used
    python -m benchmarks.teacher tpm          # the same with 120,000 tokens a minute
    python -m benchmarks.teacher memory       # 50,000 calls: resident memory along the way

Beside the flow, in the same run: LiteLLM alone, and the plain `openai` client. Options: --calls N.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from srt_assets.core.lake import Lake
from srt_assets.core.records import raw
from srt_assets.core.teacher import instructions
from srt_assets.core.teacher.call import Prompter, Source
from srt_assets.core.teacher.client import litellm
from srt_assets.settings import Dataset, Project, Settings, Teacher
from tests.fake_openai import Seen, busiest_window

ROOT = Path(__file__).parent.parent


@contextmanager
def fake_server(folder: Path, latency_s: float) -> Iterator[tuple[str, Path]]:
    port, log = folder / "port", folder / "seen.log"
    port.unlink(missing_ok=True)
    log.write_text("")
    command = [sys.executable, "-m", "tests.fake_openai", str(port), str(latency_s), str(log)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        while not port.exists() or not port.read_text():
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port.read_text()}/v1", log
        time.sleep(1.5)
    finally:
        process.terminate()
        process.wait()


def seen(log: Path) -> list[Seen]:
    rows = [line.split() for line in log.read_text().splitlines()]
    return [Seen(float(at), digest, "", {}, int(tokens)) for at, tokens, digest, _ in rows]


def make_home(folder: Path, n: int, **teacher) -> tuple[Settings, Lake]:
    folder.mkdir(parents=True)
    text = "It has a cause, a course and an end. " * 20
    rows = [{"instruction": f"Explain item {i}.", "input": "", "output": f"Item {i}. {text}"} for i in range(n)]
    (folder / "data.json").write_text(json.dumps(rows))
    settings = Settings(
        project=Project(home=folder / "home"),
        datasets=(Dataset(name="d", path=str(folder / "data.json")),),
        teacher=Teacher(**({"model": "openai/fake", "max_tokens": 500, "concurrency": 256} | teacher)),
    )
    lake = Lake(settings.home)
    raw.STAGE.run(settings, lake)
    return settings, lake


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def plain(calls: int, concurrency: int, one: Callable[[int], Awaitable[object]]) -> tuple[float, float]:
    """Seconds and CPU seconds of `calls` calls with nothing around them but a semaphore."""

    async def run() -> None:
        slots = asyncio.Semaphore(concurrency)

        async def slot(i: int) -> None:
            async with slots:
                await one(i)

        await asyncio.gather(*(slot(i) for i in range(calls)))

    started, cpu = time.monotonic(), cpu_s()
    asyncio.run(run())
    return time.monotonic() - started, cpu_s() - cpu


def efficiency(folder: Path, calls: int, concurrency: int = 256, latency_s: float = 2.0) -> None:
    ideal = latency_s * -(-calls // concurrency)
    settings, lake = make_home(folder / "flow", calls, concurrency=concurrency)
    prompter = Prompter(settings.teacher)
    text = "It has a cause, a course and an end. " * 20
    messages = [
        prompter.call(Source("x", "reflect_instruction", f"Explain item {i}.", "", f"Item {i}. {text}")).messages
        for i in range(calls)
    ]
    module = litellm()
    with fake_server(folder, latency_s) as (base, _):
        options = {"temperature": 0.0, "max_tokens": 500, "timeout": 120.0}

        async def by_litellm(i: int) -> object:
            return await module.acompletion(
                model="openai/fake", messages=messages[i], api_base=base, api_key="none", max_retries=0, **options
            )

        from openai import AsyncOpenAI

        clients: list[AsyncOpenAI] = []

        async def by_openai(i: int) -> object:
            if not clients:
                clients.append(AsyncOpenAI(base_url=base, api_key="none", max_retries=0))
            return await clients[0].chat.completions.create(model="fake", messages=messages[i], **options)

        results = {}
        plain(1, 1, by_litellm)  # imports
        results["LiteLLM alone"] = plain(calls, concurrency, by_litellm)
        results["openai alone"] = plain(calls, concurrency, by_openai)
        settings = settings.model_copy(update={"teacher": settings.teacher.model_copy(update={"api_base": base})})
        started, cpu = time.monotonic(), cpu_s()
        outcome = instructions.STAGE.run(settings, lake)
        results["srt-assets"] = (time.monotonic() - started, cpu_s() - cpu)
        asking = float(outcome.stats["seconds_calls"])
        assert outcome.stats["ok"] == calls
    print(f"{calls} calls, {latency_s} s each, {concurrency} at a time; ideal {ideal:.1f} s")
    for name, (seconds, cpu) in results.items():
        print(
            f"  {name:<15} {seconds:7.1f} s  efficiency {ideal / seconds:5.3f}  CPU {1000 * cpu / calls:6.2f} ms/call"
        )
    print(f"  of which calls  {asking:7.1f} s  efficiency {ideal / asking:5.3f}  (the rest reads records, writes rows)")
    more = 1000 * (results["srt-assets"][1] - results["LiteLLM alone"][1]) / calls
    print(f"  CPU over LiteLLM alone: {more:.2f} ms/call")


def rpm(folder: Path, calls: int) -> None:
    limited(folder, calls, 300, 0)


def tpm(folder: Path, calls: int) -> None:
    limited(folder, calls, 0, 120_000)


def limited(folder: Path, calls: int, rpm: int, tpm: int) -> None:
    settings, lake = make_home(folder / "limited", calls, rpm=rpm, tpm=tpm, concurrency=64)
    with fake_server(folder, 0.5) as (base, log):
        settings = settings.model_copy(update={"teacher": settings.teacher.model_copy(update={"api_base": base})})
        instructions.STAGE.run(settings, lake)
    rows = sorted(seen(log), key=lambda entry: entry.at)
    requests, tokens = busiest_window(rows, 60.0)
    minutes = (rows[-1].at - rows[0].at) / 60
    whole = [r for r in rows if r.at - rows[0].at < 60.0 * int(minutes)]
    used = len(whole) / int(minutes) / rpm if rpm else sum(r.tokens for r in whole) / int(minutes) / tpm
    print(
        f"rpm {rpm or '-'} tpm {tpm or '-'}: {len(rows)} calls in {minutes:.2f} min; busiest 60 s: {requests} "
        f"requests, {tokens} tokens; {used:.3f} of the allowed rate used"
    )


def memory(folder: Path, calls: int) -> None:
    settings, lake = make_home(folder / "memory", calls)
    process = psutil.Process(os.getpid())
    points: list[tuple[int, float]] = []

    def watch(done: int, total: int, unit: str = "rows", **facts: object) -> None:
        if not points or done - points[-1][0] >= total / 10 or done == total:
            points.append((done, process.memory_info().rss / 2**20))

    with fake_server(folder, 0.05) as (base, _):
        settings = settings.model_copy(update={"teacher": settings.teacher.model_copy(update={"api_base": base})})
        started = time.monotonic()
        outcome = instructions.STAGE.run(settings, lake, progress=watch)
    print(f"{calls} calls in {time.monotonic() - started:.0f} s, {outcome.stats['ok']} ok; resident MiB after calls:")
    print("  " + "  ".join(f"{done}: {mib:.0f}" for done, mib in points))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["efficiency", "rpm", "tpm", "memory"])
    parser.add_argument("--calls", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("OPENAI_API_KEY", "none-needed")
    defaults = {"efficiency": 5120, "rpm": 1250, "tpm": 650, "memory": 50_000}
    with tempfile.TemporaryDirectory() as folder:
        globals()[args.which](Path(folder), args.calls or defaults[args.which])


if __name__ == "__main__":
    main()
