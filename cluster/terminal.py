"""What the command line shows: progress, errors, and waiting for Ctrl-C."""

import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.text import Text

from ..models.errors import NfoldError


@contextmanager
def told_progress(console: Console) -> Generator[Callable[[str], None]]:
    """On a terminal one line that changes, elsewhere a line per change; each with the seconds since the start."""
    began_s = time.monotonic()

    def line(text: str) -> Text:
        return Text(f"{time.monotonic() - began_s:5.0f} s  {text}", style="dim")

    if not console.is_terminal:
        yield lambda text: console.print(line(text), soft_wrap=True)
        return
    with console.status("") as status:
        yield lambda text: status.update(line(text))


def show_error(error: NfoldError) -> None:
    """One readable paragraph."""
    Console(stderr=True).print(Text(f"nfold: {error}", style="red"), soft_wrap=True)


def wait_for_signal() -> None:
    """Until Ctrl-C or SIGTERM."""
    told = threading.Event()

    def tell(number: int, frame: FrameType | None) -> None:
        told.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    told.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
