"""The signals that stop the program, heard also where it was started with them ignored."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_S = 0.05
Handler = Callable[[int, FrameType | None], object]


def listen() -> None:
    """Let Ctrl-C and SIGTERM work again in a process that inherited them as ignored, and in the children it starts.

    A shell script starts what it puts in the background with SIGINT ignored. Python then raises no KeyboardInterrupt,
    and Dagster, which gives SIGTERM whatever SIGINT has, ignores that as well. SIGHUP stays as it is: `nohup` means it.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may set handlers, and it is the one that is interrupted
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def not_lost(*interrupts: type[BaseException]) -> Iterator[None]:
    """Within the block, a signal whose handler raises one of these does end what goes on, in the main thread.

    A handler raises wherever that thread is. Raised within Python's own import, it can leave the lock of all imports
    held for ever: it waits until that is over. Raised in a finalizer or the callback of a weak reference, it is
    dropped, with a stack trace: it comes once more.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, hook = {}, sys.unraisablehook

    def dropped(what: "sys.UnraisableHookArgs") -> None:
        if isinstance(what.exc_value, interrupts):
            _again(signal.SIGINT)
        else:
            hook(what)

    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(handler := signal.getsignal(number)):
            before[number] = handler
            signal.signal(number, _patient(handler))
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _patient(handler: Handler) -> Handler:
    def hear(number: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
            _again(number)
        else:
            handler(number, frame)

    return hear


def _again(number: int) -> None:
    # By another thread: sent from here, it would be raised here.
    timer = threading.Timer(AGAIN_S, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()
