"""Workers that die or talk at the wrong moment; imported by the processes they run in, so nothing heavy here."""

import os
import signal
import struct


def killed_in_mid_answer(spec, device, inbox, answers) -> None:
    """The system kills it while its answer is half written."""
    if device == "lives":
        while inbox.get() is not None:
            answers.send(("scored", device))
        return
    os.write(answers.fileno(), struct.pack("!i", 1_000_000) + b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def talks_for_ever(spec, device, inbox, answers) -> None:
    answers.send(("scored", os.getpid()))
    while True:
        answers.send(("scored", b"x" * 100_000))
