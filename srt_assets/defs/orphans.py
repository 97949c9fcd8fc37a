"""Stops a step whose run was killed. Otherwise it would hold a device and a lock for a result that is not used."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import wait

from srt_assets.core.signals import listen

GRACE_S = 60.0

log = logging.getLogger(__name__)


def end_with_run() -> None:
    """Watch the run's process from a child process of it; when it is gone, interrupt this step as Terminate does."""
    run = multiprocessing.parent_process()
    if run is None or any(thread.name == _watch.__name__ for thread in threading.enumerate()):
        return
    listen()
    threading.Thread(target=_watch, args=(run.sentinel,), name=_watch.__name__, daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    log.warning("the process of this run is gone; its step stops too")
    # On SIGINT a step writes its finished work, and a training saves its state.
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE_S)
    os._exit(1)
