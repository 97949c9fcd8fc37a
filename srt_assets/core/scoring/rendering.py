"""Renders chat templates, which are untrusted code, in a child process with limited time and memory.

Jinja's sandbox keeps a template from reaching Python, but does not stop nested loops or `'x' * 3000000000`. So
templates run in a child (`render_child.py`), which lives as long as its renderer.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from srt_assets.core.errors import UserError
from srt_assets.core.scoring.render_child import ENCODING

# What a person can do about a chat template that cannot be used.
REMEDY = "set student.template to vicuna, alpaca, wizardlm or none, or give its tokenizer another chat template"
# Limits for one conversation, in seconds of CPU time and bytes; usual are 0.1 ms and some MB.
SECONDS = 5.0
MEMORY = 1 << 30
# Conversations and bytes sent together. The child holds a whole batch in memory.
_BATCH, _BATCH_BYTES = 256, 1 << 22
# Environment variables passed to the child; keys of providers are not among them.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH")

Message = Mapping[str, Any]


class Renderer:
    """A chat template with the special tokens of its tokenizer. `student`: named in errors; `day`: the template's date.

    Several threads may use it.
    """

    def __init__(self, template: str, tokens: Mapping[str, Any], student: str, day: str) -> None:
        self.template, self.tokens, self.student, self.day = template, dict(tokens), student, day
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def render(self, conversations: Sequence[Sequence[Message]], **variables: Any) -> list[str]:
        """The text of each conversation, as `apply_chat_template(…, tokenize=False, **variables)` writes it.

        UserError names the student if its template fails, or takes too much time or memory.
        """
        found = self.each(conversations, **variables)
        for text in found:
            if isinstance(text, UserError):
                raise text
        return [text for text in found if isinstance(text, str)]

    def each(self, conversations: Sequence[Sequence[Message]], **variables: Any) -> list[str | UserError]:
        """Like `render`, but returns an error instead of a text for each conversation at which the template fails.

        Raises UserError if the template takes too much time or memory, because it would do so for many conversations.
        """
        shared = {"add_generation_prompt": False, **self.tokens, **variables}
        lines = (_line([{k: v for k, v in m.items() if v is not None} for m in chat]) for chat in conversations)
        with self._lock:
            return [text for batch in _batches(lines) for text in self._ask(batch, shared)]

    def _ask(self, batch: list[bytes], shared: dict[str, Any]) -> Iterator[str | UserError]:
        child = self._child or self._start()
        assert child.stdin and child.stdout
        request = {"template": self.template, "day": self.day, "shared": shared, "count": len(batch)}
        try:
            child.stdin.write(_line(request) + b"".join(batch))
            child.stdin.flush()
        except BrokenPipeError:  # the child has ended; reading its answer below raises the error
            pass
        for _ in batch:
            answer = json.loads(child.stdout.readline().decode(*ENCODING) or "null") or {"stop": self._end()}
            if "stop" in answer:
                self._child = None
                _stop(child)
                raise self._failed(answer["stop"])
            yield answer["text"] if "text" in answer else self._failed(answer["error"])

    def _start(self) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("render_child.py")
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(script), str(MEMORY), str(SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            # Ctrl-C must reach only the parent; the child ends with it, or when its renderer is collected.
            start_new_session=True,
        )
        weakref.finalize(self, _stop, self._child)
        return self._child

    def _end(self) -> str:
        """Why the child ended."""
        assert self._child
        code = self._child.wait()
        if code == -signal.SIGPROF:
            return f"it takes more than {SECONDS:g} s for one conversation"
        return f"its process ended with exit code {code}"

    def _failed(self, why: str) -> UserError:
        return UserError(
            f"the chat template of the student {self.student} cannot be used: {' '.join(why.split())}",
            REMEDY,
        )


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe:
            pipe.close()


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(*ENCODING) + b"\n"


def _batches(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for line in lines:
        batch.append(line)
        if len(batch) == _BATCH or sum(map(len, batch)) > _BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch
