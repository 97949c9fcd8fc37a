"""What commands write to. All output to a terminal passes through here, so that foreign text cannot control it.

    console()     for what the commands say, with styles of their own
    guard()       sys.stdout and sys.stderr: prints, logs, warnings, tracebacks of anybody
    relayed()     what child processes write

A file or a pipe is given what is written, as it is.
"""

import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Thread
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from srt_assets.text import printable, printable_json

# Styles of libraries that log in colour, such as Dagster's: taken out, for foreign text may hold the same.
_STYLES = re.compile(r"\x1b\[[0-9;]*m")
# How a bar of tqdm goes back to where it began.
_BACK = re.compile(r"[\r\n]*(?:\x1b\[A)*")
# Children may outlive what they were started for: their last words are not waited for any longer.
_LAST_WORDS_S = 1.0


class _Console(Console):
    """Escapes what is in any text; what moves and colours is rich's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class _Shown(io.TextIOBase):
    """A standard stream on a terminal. `terminal`: the terminal itself, wherever the stream's descriptor leads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.terminal = os.fdopen(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors="backslashreplace")
        self.draws_bars = False

    def write(self, text: str) -> int:
        back = _BACK.match(text) if self.draws_bars else None
        start = back.end() if back else 0
        self._stream.write(text[:start] + _idle(text[start:]))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        """False, so that no library writes colours; but then there would be no bars."""
        return self.draws_bars

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


def guard() -> None:
    """From here on, let nothing through to the terminal but text and what the commands themselves style."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Shown) and stream is not None and stream.isatty():
            setattr(sys, name, _Shown(stream))


def console(stderr: bool = False, file: TextIO | None = None, **options: Any) -> Console:
    """What a command prints on: `file`, else stderr or stdout."""
    stream = file or (sys.stderr if stderr else sys.stdout)
    return _Console(file=stream.terminal if isinstance(stream, _Shown) else stream, **options)


def text(value: str, style: str = "") -> Text:
    """A text for a table or a line. The console would escape it too, but after the table has measured it."""
    return Text(printable(value), style)


def is_terminal(stream: TextIO) -> bool:
    """Whether somebody reads it as it is written."""
    return isinstance(stream, _Shown) or stream.isatty()


def print_json(text: str) -> None:
    """JSON on stdout: on a terminal with every character escaped that would do something there."""
    print(printable_json(text) if is_terminal(sys.stdout) else text)


@contextmanager
def bars() -> Iterator[None]:
    """Libraries may draw their bars meanwhile: a download is long."""
    if not isinstance(stream := sys.stderr, _Shown):
        yield
        return
    stream.draws_bars = True
    try:
        yield
    finally:
        stream.draws_bars = False


@contextmanager
def relayed(show: Callable[[str], object]) -> Iterator[int]:
    """A descriptor for others to write to: each of their lines is shown, harmless. In a thread."""
    reading, writing = os.pipe()

    def pass_on() -> None:
        with os.fdopen(reading, encoding="utf-8", errors="backslashreplace", newline="\n") as lines:
            for line in lines:
                # Of a bar, which is drawn again and again over itself, its last state.
                show(_idle(line.rstrip("\r\n").rpartition("\r")[2]))

    thread = Thread(target=pass_on, name="relay", daemon=True)
    thread.start()
    try:
        yield writing
    finally:
        os.close(writing)
        thread.join(_LAST_WORDS_S)


@contextmanager
def shared_with(console: Console) -> Iterator[None]:
    """What libraries and child processes write to a terminal meanwhile stands above the console's bars, harmless."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, _Shown)]
    if not streams:
        yield
        return
    with ExitStack() as after:
        pipe = after.enter_context(relayed(lambda line: console.print(Text(line), soft_wrap=True)))
        for stream in streams:
            stream.flush()
            after.callback(_lead, stream, os.dup(stream.fileno()))
            os.dup2(pipe, stream.fileno())
        yield


def _lead(stream: _Shown, back: int) -> None:
    stream.flush()
    os.dup2(back, stream.fileno())
    os.close(back)


def _idle(text: str) -> str:
    return printable(_STYLES.sub("", text))
