"""The signals that stop the program, heard also where it was started with them ignored."""

import signal
import threading


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
