"""Output to a terminal. All of it passes through here, so that untrusted text cannot control the terminal.

    console()     output of the commands, with their own styles
    guard()       sys.stdout and sys.stderr: prints, logs, warnings and tracebacks of all libraries
    relayed()     output of child processes

Output to a file or a pipe is not changed.
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

# Colour codes of libraries such as Dagster are removed, because untrusted text may contain the same codes.
_STYLES = re.compile(r"\x1b\[[0-9;]*m")
# The characters with which tqdm returns to the start of its bar.
_BACK = re.compile(r"[\r\n]*(?:\x1b\[A)*")
# Seconds to wait for the last output of child processes, which may outlive their purpose.
_LAST_WORDS_S = 1.0


class _Console(Console):
    """Escapes control characters in all texts; rich's own control codes pass."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class _Shown(io.TextIOBase):
    """A standard stream on a terminal. `terminal`: the terminal itself, also if the descriptor is redirected."""

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
        """False, so that libraries write no colours; True while they may draw progress bars."""
        return self.draws_bars

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


def guard() -> None:
    """From here on, only plain text and the commands' own styles reach the terminal."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Shown) and stream is not None and stream.isatty():
            setattr(sys, name, _Shown(stream))


def console(stderr: bool = False, file: TextIO | None = None, **options: Any) -> Console:
    """A console for a command's output to `file`, else to stderr or stdout."""
    stream = file or (sys.stderr if stderr else sys.stdout)
    return _Console(file=stream.terminal if isinstance(stream, _Shown) else stream, **options)


def text(value: str, style: str = "") -> Text:
    """A text for a table or a line, escaped here, because the console escapes it only after the layout is measured."""
    return Text(printable(value), style)


def is_terminal(stream: TextIO) -> bool:
    """Whether the stream is a terminal."""
    return isinstance(stream, _Shown) or stream.isatty()


def print_json(text: str) -> None:
    """Print JSON on stdout; on a terminal, control characters are escaped."""
    print(printable_json(text) if is_terminal(sys.stdout) else text)


@contextmanager
def bars() -> Iterator[None]:
    """Within the block libraries may draw progress bars, for example for a download."""
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
    """Yields a file descriptor for child processes. A thread passes each line on to `show`, escaped."""
    reading, writing = os.pipe()

    def pass_on() -> None:
        with os.fdopen(reading, encoding="utf-8", errors="backslashreplace", newline="\n") as lines:
            for line in lines:
                # A progress bar overwrites itself within a line: show only its last state.
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
    """Within the block, output of libraries and child processes appears above the console's bars, escaped."""
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
