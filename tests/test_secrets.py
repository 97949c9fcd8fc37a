"""No secret is kept or shown, whatever fails and whoever repeats it; nor does a wrong address reach the ledger."""

import base64
import html
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import dagster as dg
import pyarrow.parquet as pq
import pytest

from srt_assets.commands import show
from srt_assets.core.errors import StageError, UserError
from srt_assets.core.lake import Lake
from srt_assets.core.masking import redact, without_secrets
from srt_assets.core.teacher import address, engine, instructions, sealing
from srt_assets.core.teacher.client import connect, litellm
from srt_assets.definitions import build_defs
from srt_assets.defs.automation import failed_runs
from srt_assets.defs.launch import materialize
from srt_assets.settings import Settings, Teacher, load_settings
from tests.fake_openai import FakeOpenAI, Plan
from tests.teacher_home import home, with_teacher

KEY = "zq9+Of/Nobody=7f3a&61d2"
PASSWORD = "pw-of-nobody-5b2e"


def echoes(secret: str) -> dict[str, str]:
    """How somebody may repeat a secret."""
    raw = secret.encode()
    return {
        "itself": secret,
        "in a URL": quote(secret, safe=""),
        "in a form": quote_plus(secret),
        "in a path": quote(secret),
        "in a URL, small letters": re.sub("%..", lambda found: found[0].lower(), quote(secret, safe="")),
        "in Python": repr(secret),
        "in bytes": repr(raw),
        "in JSON": json.dumps(secret),
        "in HTML": html.escape(secret),
        "in hex": raw.hex(),
        "in base 64": base64.b64encode(raw).decode(),
        "in base 64 after a name": base64.b64encode(b"api:" + raw).decode(),
        "of a login": base64.b64encode(b"user1:" + raw + b"\n").decode(),
        "in base 64 for URLs": base64.urlsafe_b64encode(raw).decode(),
        "cut": f"{secret[: len(secret) * 3 // 4]}...",
    }


def needles(secret: str) -> set[str]:
    """What must be found nowhere: a middle part of each."""
    return {secret[4:12]} | {text[len(text) // 2 - 5 : len(text) // 2 + 5] for text in echoes(secret).values()}


ECHO = f"you sent Authorization: Bearer {KEY}, that is " + ", ".join(echoes(KEY).values())


@dataclass
class Kind:
    """A failure: what the server does, how the teacher is set up, the environment, what breaks in the client or stage."""

    fault: str = ""
    error: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    usage: Any = "right"
    teacher: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    breaks: Callable[[pytest.MonkeyPatch], None] = lambda patch: None
    says: str = ""
    exit_code: int = 2
    dagster: bool = False


def client_raises(patch: pytest.MonkeyPatch) -> None:
    async def acompletion(**_: Any) -> None:
        headers = {"Authorization": f"Bearer {KEY}", "x-api-key": KEY}
        try:
            raise RuntimeError(
                f"POST Request Sent from LiteLLM: curl -X POST http://x -H 'Authorization: Bearer {KEY}'"
            )
        except RuntimeError as error:
            text = f"connection broke; request headers {headers}, {ECHO}"
            raise litellm().exceptions.APIConnectionError(text, "openai", "fake") from error

    patch.setattr(litellm(), "acompletion", acompletion)


def stage_breaks(patch: pytest.MonkeyPatch) -> None:
    def seal(_: object) -> int:
        try:
            raise KeyError(KEY)
        except KeyError as error:
            raise RuntimeError(f"no such thing: {ECHO}") from error

    patch.setattr(sealing, "seal", seal)


ONE = {"max_attempts": 1}
KINDS = {
    "401": Kind("401", ECHO, says="refuses every call", dagster=True),
    "403": Kind("403", ECHO, says="refuses every call"),
    "404": Kind("404", ECHO, says="refuses every call"),
    "400": Kind("400", ECHO, exit_code=0),
    "429": Kind("429", ECHO, {"retry-after": "86400"}, says="asks to wait", exit_code=1, dagster=True),
    "no funds": Kind("429", ECHO + "insufficient_quota", says="no funds left", exit_code=1),
    "500": Kind("500", ECHO, teacher=ONE, exit_code=0),
    "garbage": Kind("garbage", ECHO, teacher=ONE, exit_code=0),
    "wrong type": Kind("usage", usage={"prompt_tokens": ECHO, "completion_tokens": [KEY]}, teacher=ONE, exit_code=0),
    "half a reply": Kind("half", teacher=ONE, exit_code=0),
    "timeout": Kind("hang", teacher=ONE | {"timeout_s": 0.2}, exit_code=0),
    "refused": Kind(teacher={"api_base": "http://127.0.0.1:9/v1"}, says="cannot be reached", exit_code=1),
    "no host": Kind(teacher={"api_base": "http://no-such-host.invalid/v1"}, says="cannot be reached", exit_code=1),
    "key with a line end": Kind(environment={"OPENAI_API_KEY": KEY + "\n"}, says="API key anew", dagster=True),
    "key not in ASCII": Kind(environment={"OPENAI_API_KEY": "ü" + KEY}, says="API key anew"),
    "address of another scheme": Kind(
        teacher={"api_base": ""}, environment={"OPENAI_BASE_URL": f"ftp://u:{PASSWORD}@127.0.0.1:9"}, says="OPENAI_BASE"
    ),
    "address with a password": Kind(
        teacher={"api_base": ""}, environment={"OPENAI_API_BASE": f"http://u:{PASSWORD}@127.0.0.1:9"}, says="OPENAI_API"
    ),
    "proxy": Kind(
        teacher={"api_base": "http://no-such-host.invalid/v1"},
        environment={
            "http_proxy": f"http://u:{PASSWORD}@127.0.0.1:9",
            "HTTP_PROXY": f"http://u:{PASSWORD}@127.0.0.1:9",
        },
        says="cannot be reached",
        exit_code=1,
    ),
    "client": Kind(breaks=client_raises, teacher=ONE, exit_code=0, dagster=True),
    "stage": Kind(breaks=stage_breaks, says="RuntimeError: no such thing", exit_code=1, dagster=True),
}


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test(temp_dir=str(tmp_path_factory.mktemp("dagster"))) as made:
        yield made


def told(*folders: Path) -> Iterator[tuple[str, str]]:
    """(file, text) of everything in these folders; Parquet is compressed, so its rows."""
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        yield str(path), path.read_bytes().decode("latin-1") + path.read_bytes().decode("utf-8", "replace")
        if path.suffix == ".parquet":
            yield f"{path}, rows", str(pq.read_table(path).to_pylist())


@pytest.mark.parametrize("name", KINDS)
def test_no_secret_is_kept_or_shown(
    tmp_path: Path,
    name: str,
    instance: dg.DagsterInstance,
    quick_teacher: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    kind = KINDS[name]
    monkeypatch.setattr(engine, "UNREACHABLE_AT_START_S", 0.05)
    for variable, value in {"OPENAI_API_KEY": KEY, "COLUMNS": "4000", **kind.environment}.items():
        monkeypatch.setenv(variable, value)
    code = "insufficient_quota" if name == "no funds" else None
    plan = Plan(kind.fault, headers=kind.headers, usage=kind.usage, error={"message": kind.error, "code": code})
    if name == "garbage":
        monkeypatch.setattr(FakeOpenAI, "answer", lambda *_: (200, f"<html>{ECHO}</html>".encode()))
    with FakeOpenAI(lambda body, nth: plan) as fake:
        settings, lake = home(tmp_path / "site", 2, api_base=fake.base)
        settings = with_teacher(settings, **kind.teacher)
        kind.breaks(monkeypatch)
        if kind.dagster:
            done = materialize(build_defs(settings), instance, ["reflected_instructions"], None, verbose=True)
            exit_code, errors = done.exit_code, done.errors
            note(instance, done.run_id, settings)
        else:
            exit_code, errors = run(settings, lake)
    assert exit_code == kind.exit_code, errors
    assert kind.says in " ".join(errors)
    show.status(settings, lake, [])
    shown = capfd.readouterr()
    places = [("stdout", shown.out), ("stderr", shown.err), ("log", caplog.text), ("errors", " ".join(errors))]
    places += told(tmp_path, *[Path(instance.root_directory)][: kind.dagster])
    assert len(places) > 12
    wanted = needles(KEY) | needles(PASSWORD)
    assert [(place, needle) for place, text in places for needle in wanted if needle in text] == []


def run(settings: Settings, lake: Lake) -> tuple[int, tuple[str, ...]]:
    """The stage without Dagster."""
    try:
        instructions.STAGE.run(settings, lake)
    except (UserError, StageError) as error:
        return error.exit_code, (str(error),)
    return 0, ()


def note(instance: dg.DagsterInstance, run_id: str, settings: Settings) -> None:
    """What the sensor writes about a failed run."""
    run = instance.get_run_by_id(run_id)
    failures = instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    if run is None or not failures:
        return
    context = dg.build_run_status_sensor_context("failed_runs", failures[0].dagster_event, instance, run)
    failed_runs(settings, dg.DefaultSensorStatus.RUNNING, 30)(context.for_run_failure())
    assert (settings.home / "failures" / f"{run_id}.md").exists()
