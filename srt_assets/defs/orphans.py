"""A step whose run was killed stops too: else it would keep a device and a lock for a result that is not used."""

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
    """Watch the run's process from a step that is a child of it; when it is gone, be interrupted like by Terminate."""
    run = multiprocessing.parent_process()
    if run is None or any(thread.name == _watch.__name__ for thread in threading.enumerate()):
        return
    listen()
    threading.Thread(target=_watch, args=(run.sentinel,), name=_watch.__name__, daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    log.warning("the process of this run is gone; its step stops too")
    # What is done so far is put down, a training saves its state.
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE_S)
    os._exit(1)
