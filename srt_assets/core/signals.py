"""Makes Ctrl-C and SIGTERM stop the program reliably, also when it was started with these signals ignored."""

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

    A shell script starts background processes with SIGINT ignored. Python then raises no KeyboardInterrupt, and
    Dagster, which copies the handler of SIGINT to SIGTERM, ignores SIGTERM too. SIGHUP stays ignored, as `nohup`
    intends.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may set handlers, and it is the one that is interrupted
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def not_lost(*interrupts: type[BaseException]) -> Iterator[None]:
    """Within the block, a signal whose handler raises one of these exceptions always interrupts the main thread.

    A handler may raise at any point of the main thread. An exception within Python's import system can leave the global
    import lock held forever, so the signal is sent again after the import. Python drops an exception that is raised in
    a finalizer or a weak reference's callback, so the signal is sent again then too.
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
    # Sent by another thread, because a signal sent from here would be handled at once.
    timer = threading.Timer(AGAIN_S, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()
