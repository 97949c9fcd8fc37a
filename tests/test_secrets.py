"""No secret is kept or shown, whatever fails and whoever repeats it; nor does a wrong address reach the ledger."""

import base64
import html
import json
import os
import re
import subprocess
import sys
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
from srt_assets.core.teacher import address, health, instructions, sealing
from srt_assets.core.teacher.client import connect, litellm
from srt_assets.definitions import build_defs
from srt_assets.defs.automation import failed_runs
from srt_assets.defs.execute import materialize
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
    """A failure: what the server does, the teacher's settings, the environment, what breaks in the client or stage."""

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
    "400": Kind("400", ECHO, says="refuses every call"),
    "429": Kind("429", ECHO, {"retry-after": "86400"}, says="asks to wait", exit_code=1, dagster=True),
    "no funds": Kind("429", ECHO + "insufficient_quota", says="no funds left", exit_code=1),
    "500": Kind("500", ECHO, teacher=ONE | {"patience_s": 0.5}, says="has answered nothing", exit_code=1),
    "garbage": Kind("garbage", ECHO, teacher=ONE, says="all failed", exit_code=1),
    "wrong type": Kind("usage", usage={"prompt_tokens": ECHO, "completion_tokens": [KEY]}, teacher=ONE, exit_code=0),
    "half a reply": Kind("half", teacher=ONE, says="all failed", exit_code=1),
    "timeout": Kind("hang", teacher=ONE | {"timeout_s": 0.2}, says="all failed", exit_code=1),
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
    "client": Kind(breaks=client_raises, teacher=ONE, says="all failed", exit_code=1, dagster=True),
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
    monkeypatch.setattr(health, "UNREACHABLE_AT_START_S", 0.05)
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


@pytest.mark.parametrize("secret", [KEY, "zq9 schlüssel'of\"nobody\\x", "zq9-key-of-nobody\n"])
def test_a_secret_is_masked_in_every_form(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("ODD_TOKEN", secret)
    for form, text in echoes(secret).items():
        masked = without_secrets(f"before {text}, after")
        assert not any(needle in masked for needle in needles(secret)), (form, masked)
        assert masked.startswith("before ") and masked.endswith(", after")


@pytest.mark.parametrize(
    "text",
    ["https://name:pw-5b2e@host/v1", "sk-abc1234567890abcdef", "Bearer abc.def-1234", "AIza" + 9 * "Sy1-"],
)
def test_what_can_be_nothing_else_is_a_secret(text: str) -> None:
    assert "***" in str(UserError(f"cannot use {text}", "another")) and "cannot use" in without_secrets(
        text + " cannot use"
    )


def test_messages_of_ours_still_name_files_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file := tmp_path / "key.pem").write_text("")
    monkeypatch.setenv("SSL_KEY_FILE", str(file))
    monkeypatch.setenv("TOKEN_SERVER", "https://keys.example.org")
    said = f"{file}, https://keys.example.org, key-points.jsonl, sk-slovak.json, teacher.api_key: unknown setting"
    assert str(UserError(said, "x")).startswith(said)


def test_the_words_of_others_are_read_with_more_suspicion() -> None:
    said = 'Incorrect API key provided: sk-ab***xyz; password = \'hunter22\', {"api_key": "abcd1234"}, Basic dXNlcjpw'
    masked = redact(said + ", Authorization: Basic dXNlcjpw")
    assert "xyz" not in masked and "hunter22" not in masked and "abcd1234" not in masked
    assert masked.endswith("Authorization: Basic ***")


GOOD = (
    "http://localhost:8000/v1",
    "https://name.openai.azure.com/openai?api-version=2024-10-01-preview",
    "https://gateway.example.org/v1/0123456789abcdef0123456789abcdef/openai",
    "http://[::1]:8000/v1",
    "https://key-vault.example.org/sk-region/v1",
)
BAD = {
    f"http://name:{PASSWORD}@host/v1": "user name or a password",
    f"http://{KEY.replace('/', '')}@host/v1": "user name or a password",
    f"http://name:{PASSWORD}": "no address",
    f"https://host/v1?api_key={PASSWORD}": "after its ?",
    f"https://host/v1?x={PASSWORD}-and-more": "after its ?",
    f"https://host/v1#{PASSWORD}": "after #",
    "https://host/sk-5b2e-of-nobody/v1": "there is a key in it",
    "https://host/v1/environment-key-5b2e": "there is a key in it",
    f"ftp://host/{PASSWORD}": "write the whole URL",
    f"{PASSWORD}": "write the whole URL",
    f"http://host/ {PASSWORD}": "a blank",
    f"http:///{PASSWORD}": "no address",
    f"http://host:{PASSWORD}/v1": "no address",
}


@pytest.mark.parametrize("value", GOOD)
def test_an_ordinary_address_is_taken(value: str) -> None:
    assert address.fault(value) is None and Teacher(api_base=value).api_base == value


@pytest.mark.parametrize("source", ["file", "variable"])
@pytest.mark.parametrize("value", BAD)
def test_an_address_that_is_refused_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, source: str
) -> None:
    monkeypatch.setenv("SOME_KEY", "environment-key-5b2e")
    (file := tmp_path / "srt.toml").write_text(
        f"[teacher]\napi_base = {json.dumps(value)}\n" if source == "file" else ""
    )
    if source == "variable":
        monkeypatch.setenv("SRT_TEACHER__API_BASE", value)
    with pytest.raises(UserError, match=r"teacher\.api_base: ") as refused:
        load_settings(file)
    assert BAD[value] in str(refused.value) and "5b2e" not in str(refused.value) and KEY[:8] not in str(refused.value)
    assert "\n" not in refused.value.message and (source == "file" or "SRT_TEACHER__API_BASE" in str(refused.value))


@pytest.mark.parametrize(
    ("model", "variable"),
    [
        ("openai/x", "OPENAI_BASE_URL"),
        ("openai/x", "OPENAI_API_BASE"),
        ("hosted_vllm/x", "HOSTED_VLLM_API_BASE"),
        ("anthropic/claude-3-haiku-20240307", "ANTHROPIC_BASE_URL"),
        ("azure/x", "AZURE_API_BASE"),
    ],
)
def test_litellms_own_variables_are_looked_at_too(monkeypatch: pytest.MonkeyPatch, model: str, variable: str) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AZURE_API_KEY"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv(variable, f"http://name:{PASSWORD}@host/v1")
    with pytest.raises(UserError, match=f"environment variable {variable}: .*user name or a password") as refused:
        connect(Teacher(model=model))
    assert PASSWORD not in str(refused.value)
    connect(Teacher(model=model, api_base="http://127.0.0.1:9/v1"))  # then it does not count


@pytest.mark.parametrize(
    "text",
    [
        '[teacher]\napi_key = "{}"',
        '[teacher]\nrpm = "{}"',
        '[teacher]\nreply_format = "{}"',
        '[teacher]\nmodel = ["{}"]',
        '[student]\ndevices = "{}"',
        '[automation]\nnightly = "{}"',
        '[[datasets]]\nname = "a {}"\npath = "x"',
        '[[datasets]]\nname = "a"\npath = "x"\nkey = "{}"',
        'key = "{}"',
        'teacher = "{}"',
        '[teacher]\nmodel = "{}\\u0000"',
    ],
)
def test_a_key_in_the_wrong_setting_is_not_shown(tmp_path: Path, text: str) -> None:
    (file := tmp_path / "srt.toml").write_text(text.format(PASSWORD))
    with pytest.raises(UserError) as refused:
        load_settings(file)
    assert PASSWORD not in str(refused.value) and str(file) in str(refused.value)


def test_pydantic_itself_does_not_show_it_either() -> None:
    with pytest.raises(ValueError) as refused:
        Teacher(rpm=PASSWORD)  # type: ignore[arg-type]
    assert PASSWORD not in str(refused.value)


def test_an_exception_that_nobody_caught_prints_no_secret(tmp_path: Path) -> None:
    code = """
import os, threading
from srt_assets.core.masking import mask_uncaught
mask_uncaught()
def fail(): raise ValueError(os.environ["ODD_KEY"])
thread = threading.Thread(target=fail)
thread.start(), thread.join()
try: fail()
except ValueError as error: raise RuntimeError(repr(os.environ["ODD_KEY"])) from error
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "ODD_KEY": KEY}, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.count("***") == 3 and KEY not in done.stderr
    assert "ValueError" in done.stderr and "RuntimeError" in done.stderr
