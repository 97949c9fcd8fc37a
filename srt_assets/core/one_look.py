"""A cache for commands that only read, such as `srt status`: within a block each file is read once.

All answers within the block are therefore of one moment. A run does not use it, because it changes what it reads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")
_seen: ContextVar[dict[Any, Any] | None] = ContextVar("seen", default=None)


@contextmanager
def one_look() -> Iterator[None]:
    """Cache the results of functions marked with `once_a_look` within the block. Nested blocks share one cache."""
    if _seen.get() is not None:
        yield
        return
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def once_a_look(ask: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorator: within `one_look`, call the function once per set of arguments. Errors are not cached."""

    @wraps(ask)
    def asked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        seen = _seen.get()
        if seen is None:
            return ask(*args, **kwargs)
        key = (ask, args, tuple(sorted(kwargs.items())))
        if key not in seen:
            seen[key] = ask(*args, **kwargs)
        return seen[key]

    return asked
