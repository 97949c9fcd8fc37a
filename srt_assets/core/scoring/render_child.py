"""The child process that renders chat templates, started by `rendering.py`: limited memory and time, no secrets.

It is a script of its own that imports Jinja and nothing of this program. A template sees the same functions as in
transformers (`transformers.utils.chat_template_utils`), so that it writes the same text; only the date is fixed.

Protocol: the child reads requests, one line of JSON each: the template, the shared variables, and the number of
conversations that follow, one line each. It answers each conversation with a line `{"text": …}` or `{"error": …}`. A
line `{"stop": …}` says which limit the template exceeded; the child ends after it.
"""

import json
import re
import resource
import signal
import sys
from datetime import datetime
from functools import lru_cache

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST_ERROR = 300
# Limit of the rendered text: TIMES the conversation's bytes, and AND_MORE characters for a system text.
TIMES, AND_MORE = 16, 1 << 20
# JSON may hold lone surrogates.
ENCODING = ("utf-8", "surrogatepass")
_HALF = re.compile("[\ud800-\udfff]")


class Generation(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}`, which marks the model's own text; it writes its body unchanged."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's interface

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller):
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Jinja's namespace, but without names that begin with `_`."""

    def __init__(*args, **kwargs):  # `namespace(self=…)` is allowed
        self, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            Namespace._check(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name, value):
        Namespace._check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"the name {name!r} begins with _")


class Dict:
    """`dict(…)` for templates, without access to Python's own class."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        return dict.fromkeys(*args, **kwargs)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def compiled(template: str, day: str) -> jinja2.Template:
    """The compiled template, for which the current date is `day` (ISO)."""
    extensions = [Generation, jinja2.ext.loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = tojson
    environment.globals.update(
        raise_exception=raise_exception,
        strftime_now=datetime.fromisoformat(day).strftime,
        dict=Dict(),
        namespace=Namespace,
    )
    return environment.from_string(template)


def answer(request: dict, conversation: bytes) -> dict[str, str]:
    """The answer for one conversation: its text, an error, or a stop."""
    try:
        shared = {"tools": None, "documents": None, **request["shared"]}
        template = compiled(request["template"], request["day"])
        text = template.render(**shared, messages=json.loads(conversation.decode(*ENCODING)))
    except MemoryError:
        return {"stop": "it needs too much memory"}
    except RecursionError:
        return {"stop": "it calls itself without end"}
    except jinja2.exceptions.TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"[:LONGEST_ERROR]}
    except Exception as error:  # noqa: BLE001 - whatever a template raises, on purpose or not
        words = str(error) if isinstance(error, jinja2.exceptions.TemplateError) else f"{type(error).__name__}: {error}"
        return {"error": words[:LONGEST_ERROR]}
    if len(text) > TIMES * len(conversation) + AND_MORE:
        return {"stop": f"it makes {len(text):,} characters of {len(conversation):,}"}
    if not text.isascii() and _HALF.search(text):
        return {"error": "it writes half a character, which no tokenizer takes"}
    return {"text": text}


def main() -> None:
    memory, seconds = int(sys.argv[1]), float(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for no_more in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(no_more, (0, 0))
    while line := sys.stdin.buffer.readline():
        request = json.loads(line.decode(*ENCODING))
        # Read all conversations first: the parent reads answers only after it has sent the whole request.
        for conversation in [sys.stdin.buffer.readline() for _ in range(request["count"])]:
            # CPU time, not wall clock, so that other work on the machine does not count. The signal kills the process,
            # because an exception could not interrupt a single long operation of Python.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            found = answer(request, conversation)
            signal.setitimer(signal.ITIMER_PROF, 0)
            sys.stdout.buffer.write(json.dumps(found, ensure_ascii=False).encode(*ENCODING) + b"\n")
            if "stop" in found:  # the other conversations would exceed the limit too
                return
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
