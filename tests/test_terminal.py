"""One nasty text in every place that strangers write to, and every command on a terminal: nothing there obeys it.

The terminal is a pseudo-terminal, and the commands run in this process. What they write themselves is known: Rich's
colours and what draws its bars. Everything else of what a terminal acts on, or does not show, is escaped.
"""

import json
import logging
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from selection_lake import candidate_rows as four
from selection_lake import record, small_lake, write_candidates, write_records
from tiny_student import make_tiny_student

from srt_assets.cli import main
from srt_assets.commands import terminal
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.selection import decide
from srt_assets.core.students import checkpoints
from srt_assets.core.training import card
from srt_assets.settings import Dataset, Project, Settings
from srt_assets.text import as_block, as_code, in_markdown, printable, printable_json

ROOT = Path(__file__).parent.parent
EVIL = (
    "\x1b[95mred\x1b]0;title\x07 \x9b2J \x85 \u202egnp.exe \u2028line \u200bzero\ufeff \u2066iso \U000e0041tag \x7f\x08"
)
# What a terminal obeys or hides; and what a command's own style is made of.
OBEYED = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e0fff]"
)
OWN = re.compile(r"\x1b\[([0-9;]*m|\?25[lh]|2K|1A)|\r")


class Screen:
    """A pseudo-terminal: within the block it is this process's stdout and stderr. `seen()`: what it was last given."""

    def __init__(self) -> None:
        self._master, self._slave = pty.openpty()
        self._given = b""
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> "Screen":
        self._patch = pytest.MonkeyPatch()
        for name in ("stdout", "stderr"):
            self._patch.setattr(sys, name, os.fdopen(os.dup(self._slave), "w", encoding="utf-8"))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _read(self) -> None:
        while data := os.read(self._master, 65536):
            self._given += data

    def seen(self) -> str:
        mark = f"<{os.urandom(8).hex()}>".encode()
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(self._slave, mark)
        deadline = time.monotonic() + 60
        while mark not in self._given:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        text, self._given = self._given.replace(mark, b""), b""
        return text.decode().replace("\r\n", "\n")


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Screen()


def obeyed(text: str) -> list[str]:
    return re.findall(r"\x1b\[95m", text) + OBEYED.findall(OWN.sub("", text))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home and settings in which strangers have written everything they can."""
    tmp_path = tmp_path_factory.mktemp("site")
    lake = small_lake(tmp_path / "home")
    decide.STAGE.run(Settings(project=Project(home=lake.home)), lake, student="tiny")
    evil = record(1) | {"instruction": EVIL, "response": EVIL, "source_file": f"{EVIL}.json"}
    write_records(lake, [evil])
    write_candidates(lake, four(evil))
    calls = [
        {"call_key": f"call-{name}-{evil['sample_id']}", "sample_id": evil["sample_id"], "purpose": "p", "model": EVIL}
        | {"status": status, "reply": EVIL, "error": EVIL, "attempt": 1, "prompt_version": EVIL}
        for name, status in (("reflected_instruction", "ok"), ("reflected_response", "refused"))
    ]
    part = lake.write_part("teacher_calls", calls)
    lake.commit("teacher_calls", [part], fingerprint=Fingerprint.of(of="c"), code_version="1")
    lake.record_failure("raw_records", None, None, EVIL)
    checkpoints.add(Settings(), lake, str(make_tiny_student(tmp_path / EVIL.replace("/", ""))), "tiny")
    in_toml = "".join(f"\\U{ord(c):08x}" for c in EVIL)
    (tmp_path / "srt.toml").write_text(
        "[project]\nhome = 'home'\n[automation]\nwatch = 'watched'\n"
        f"[[datasets]]\nname = 'd'\npath = \"{in_toml}.json\"\n"
    )
    (tmp_path / "watched" / EVIL.replace("/", "")).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def home(site: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(site)
    return Lake(site / "home")


def srt(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["srt", *words])
        main()
    return int(ended.value.code or 0)


QUOTED = EVIL.replace("'", "''")
ALIAS = EVIL.replace('"', '""')
COMMANDS = {
    "a value": ("sql", "SELECT instruction, source_file FROM raw_records"),
    "a column": ("sql", f'SELECT 1 AS "{ALIAS}"'),
    "an upright column": ("sql", f"SELECT repeat('x', 500) AS \"{ALIAS}\""),
    "csv": ("sql", f'SELECT *, 1 AS "{ALIAS}" FROM raw_records', "--format", "csv"),
    "json": ("sql", f'SELECT *, 1 AS "{ALIAS}" FROM raw_records', "--format", "json"),
    "an error that echoes the query": ("sql", f"SELECT {ALIAS} FROM"),
    "an error that echoes a value": ("sql", f"SELECT '{QUOTED}'::INTEGER"),
    "an error while rows are read": ("sql", "SELECT instruction::INTEGER FROM raw_records"),
    "an unknown table": ("sql", f'SELECT * FROM "{ALIAS}"'),
    "a format": ("sql", "SELECT 1", "--format", EVIL),
    "a usage error": ("sql", "SELECT 1", f"--{EVIL}"),
    "explain": ("explain", record(1)["sample_id"]),
    "explain json": ("explain", record(1)["sample_id"], "--format", "json"),
    "explain of none": ("explain", EVIL),
    "why-call": ("why-call", record(1)["sample_id"]),
    "status": ("status",),
    "students": ("students", "list"),
    "a source": ("students", "add", EVIL),
    "doctor": ("doctor",),
    "prune": ("prune",),
    "estimate": ("estimate",),
    "a report": ("report", "--student", "tiny", "--out", f"{EVIL}.md"),
    "an export": ("export", "--student", "tiny", "--out", f"out-{EVIL}.json"),
    "an unknown asset": ("run", EVIL),
    "a failed run": ("run", "raw_dataset"),
    "Dagster's own log of it": ("run", "raw_dataset", "--verbose"),
}
SAYS_NOTHING_OF_IT = {"prune", "why-call"}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_no_command_lets_a_text_reach_the_terminal_as_it_is(
    home: Lake, screen: Screen, words: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    with screen:
        srt(*words)
        told = screen.seen()
    assert obeyed(told) == [], repr(told)
    if request.node.callspec.id not in SAYS_NOTHING_OF_IT:
        assert "\\x9b" in told or "\\u009b" in told, told


def test_json_on_a_terminal_is_json_of_the_same(home: Lake, screen: Screen) -> None:
    with screen:
        srt("sql", "SELECT instruction FROM raw_records", "--format", "json")
        assert json.loads(screen.seen()) == [{"instruction": EVIL}]


def test_a_file_is_given_what_is_there(home: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("csv", "json"):
        srt("sql", "SELECT instruction FROM raw_records", "--format", kind)
        out = capsys.readouterr().out
        assert "\x9b2J" in out
        assert EVIL in out if kind == "csv" else json.loads(out) == [{"instruction": EVIL}]


def warn(text: str) -> None:
    """As a library does whose logger nobody has told where to write."""
    logger = logging.Logger("any")
    logger.parent = None
    logger.warning(text)


@pytest.mark.parametrize("say", [print, warn, lambda text: sys.stderr.write(f"{text}\n")])
def test_what_anybody_writes_to_a_terminal_is_harmless(screen: Screen, say: Callable[[str], object]) -> None:
    with screen:
        terminal.guard()
        say(f"before {EVIL} after")
        told = screen.seen()
    assert obeyed(told) == [] and "before" in told and "after" in told and "\\x9b2J" in told


def test_bars_of_a_download_are_drawn_and_nothing_else_is(screen: Screen) -> None:
    with screen:
        terminal.guard()
        assert not sys.stderr.isatty()
        with terminal.bars():
            assert sys.stderr.isatty()
            sys.stderr.write(f"\r 10% {EVIL}")
            sys.stderr.write("\n\x1b[A")
        told = screen.seen()
    assert told.startswith("\r 10% ") and told.endswith("\n\x1b[A") and OBEYED.findall(told.replace("\x1b[A", "")) == []


CHILD = "import sys; sys.stdout.write(sys.argv[1] + '\\n'); sys.stderr.write('10%\\r20% ' + sys.argv[1])"


def test_what_a_child_process_writes_is_harmless(screen: Screen) -> None:
    with screen:
        terminal.guard()
        console = terminal.console(stderr=True)
        with terminal.shared_with(console):
            child = [sys.executable, "-c", CHILD, EVIL]
            subprocess.run(child, stdout=sys.stdout.fileno(), stderr=sys.stderr.fileno(), check=True)
        told = screen.seen()
        assert obeyed(told) == [] and told.count("gnp.exe") == 2 and "10%" not in told
        print("after")
        assert screen.seen() == "after\n", "the terminal is back in its place"


def test_nobody_prints_past_it() -> None:
    """Who needs a console asks `terminal` for it."""
    files = (ROOT / "srt_assets").rglob("*.py")
    assert [f.name for f in files if re.search(r"(?<![\w.])Console\(", f.read_text())] == []


# -- the rules themselves


def test_printable_keeps_what_people_write() -> None:
    for text in ("Ümlaut, 漢字, العربية, हिन्दी", "emoji ❤️", "tab\tand\nline", "[bold]", "\\x1b"):
        assert printable(text) == text
    assert printable("a\r\nb\rc") == "a\nb\\rc" and printable("caf\udce9") == "caf\\udce9"
    assert json.loads(printable_json(json.dumps(EVIL, ensure_ascii=False))) == EVIL


MARKUP = (
    "![i](http://e.x/i.png) [l](http://e.x) \\[m](http://e.x) <b>b</b> <http://e.x> `c` *e* _e_ **s** ~~d~~ | cell |\n"
    "\n# heading\n\n- item\n\n[r]: http://e.x\n\n    code\n--- \n&lt; http://e.x www.e.x"
)


def rendered(text: str) -> set[str]:
    """The kinds of all tokens of a Markdown text."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return {t.type for token in tokens for t in (token, *(token.children or ()))}


def test_markdown_of_a_stranger_is_text() -> None:
    plain = rendered("| head |\n|---|\n| text |\n")
    assert rendered(f"| head |\n|---|\n| {in_markdown(MARKUP)} |\n") == plain
    assert rendered(f"| head |\n|---|\n| {as_code(MARKUP)} |\n") == plain | {"code_inline"}
    assert rendered(f"{in_markdown(MARKUP)}") == {"paragraph_open", "inline", "text", "paragraph_close"} | {
        kind for kind in rendered(in_markdown(MARKUP)) if kind == "text_special"
    }
    assert rendered(as_block(MARKUP)) == {"code_block"}


def test_cards_reports_and_notes_hold_no_markup_of_strangers(home: Lake, tmp_path: Path) -> None:
    """Names of datasets, files, models and students: in a dataset's card, a model's card, and a report."""
    settings = Settings(project=Project(home=home.home), datasets=(Dataset(name="alpaca", path=f"x/{MARKUP}"),))
    calls = [
        {"call_key": f"call-reflected_both-{record(1)['sample_id']}", "model": MARKUP, "status": "ok", "attempt": 1}
    ]
    part = home.write_part("teacher_calls", calls)
    home.commit("teacher_calls", [part], fingerprint=Fingerprint.of(of="d"), code_version="1")
    from srt_assets.commands import card as dataset_card
    from srt_assets.commands.report import report

    texts = [dataset_card.write(settings, home, "tiny", "alpaca")]
    for ending in ("md", "html"):
        report(home, "tiny", tmp_path / f"page.{ending}")
    texts.append((tmp_path / "page.md").read_text())
    for text in texts:
        assert "e.x" in text
        assert rendered(text.split("---\n")[-1]).isdisjoint({"image", "link_open", "html_inline", "html_block"})
        assert OBEYED.findall(text) == []
    page = (tmp_path / "page.html").read_text()
    assert "<b>b</b>" not in page and OBEYED.findall(page) == []
    assert "script-src" not in page and "unsafe" not in page and "default-src 'none'" in page


def test_a_models_card_names_its_base_as_text() -> None:
    facts = dict.fromkeys(re.findall(r"{(\w+)", card.TEMPLATE), "x") | {
        "left_out": {},
        "versions": {},
        "method": "full",
        "policy": {},
        "base": MARKUP,
        "answers_end_with": MARKUP,
        "rows_by": {"dataset": {MARKUP: 1}, "candidate": {}},
        "prompt_note": MARKUP,
    }
    told = ("datasets", "candidates", "switches", "left_out_n", "left_out_why", "software", "evaluation", "prompted")
    facts = {name: value for name, value in facts.items() if name not in told}
    text = card.write(facts)
    assert rendered(text.split("---\n", 2)[-1]).isdisjoint({"image", "link_open", "html_inline", "s_open"})
