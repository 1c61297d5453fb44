"""Slows a process down from outside: it is stopped now and then."""

import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stops:
    """A process is stopped for so long, so often."""

    stopped_s: float
    every_s: float


@contextmanager
def stopping(pid: int, stops: Stops) -> Generator[None]:
    """While the context lasts."""
    ended = threading.Event()

    def stop_now_and_then() -> None:
        while not ended.wait(stops.every_s - stops.stopped_s):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(stops.stopped_s)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=stop_now_and_then)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
