"""A client in a process of its own: it can be ended at any time, and its CPU seconds are its own."""

import multiprocessing as mp
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from ...models.errors import EngineError, NfoldError
from .client import ClientJob, ClientResult, run_client

_POLL_S = 0.2
_ORPHAN_CHECK_S = 1.0

Progress = Callable[[str], None]


def run_in_process(
    job: ClientJob, progress: Progress = lambda line: None, *, on_start: Callable[[int], None] = lambda pid: None
) -> ClientResult:
    """As `run_client`, elsewhere. Whatever ends this call ends the process too.

    Args:
        on_start: told the process's id.

    Raises: as `run_client`; EngineError when the process dies.
    """
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(theirs, job, os.getpid()), name="nfold bench client", daemon=True)
    process.start()
    theirs.close()
    assert process.pid is not None
    on_start(process.pid)
    try:
        while True:
            if not ours.poll(_POLL_S):
                continue
            kind, value = ours.recv()
            if kind == "progress":
                progress(value)
            elif kind == "error":
                raise value
            else:
                return value
    except EOFError:
        process.join()
        killed = (
            " (killed; the kernel does that when memory runs out)" if process.exitcode == -signal.SIGKILL else ""
        )
        raise EngineError(f"the client process ended with code {process.exitcode}{killed}") from None
    finally:
        process.kill()
        process.join()
        ours.close()


def _main(pipe: Connection, job: ClientJob, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    try:
        result = run_client(job, lambda line: pipe.send(("progress", line)))
        pipe.send(("result", result))
    except NfoldError as error:
        pipe.send(("error", error))
    except (KeyError, ValueError, TypeError, OSError) as error:
        pipe.send(("error", EngineError(f"the client failed: {type(error).__name__}: {error}")))
    finally:
        pipe.close()


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_ORPHAN_CHECK_S)
    os._exit(1)
