"""Runs a function in several processes, one per rank, and brings their results back."""

import multiprocessing as mp
import pickle
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

TIMEOUT_S = 120.0


def on_ranks(
    function: Callable[..., Any], size: int, *arguments: Any, wait_for: Sequence[int] | None = None
) -> Any:
    """Results of `function(rank, size, *arguments)` of the ranks in `wait_for` (all), in that order.

    `function` must stand in a module of tests/support, which the new processes can import. An exception in a rank
    fails with its traceback; what still runs at the end is killed.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["torch", "nfold.models.registry"])
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    processes = [
        context.Process(target=_run, args=(function, rank, size, arguments, pipes[rank][1]), daemon=True)
        for rank in range(size)
    ]
    try:
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            sender.close()
        deadline = time.monotonic() + TIMEOUT_S
        return [_receive(rank, pipes[rank][0], deadline) for rank in wait_for or range(size)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _run(function: Callable[..., Any], rank: int, size: int, arguments: Sequence[Any], sender: Connection) -> None:
    try:
        answer = (True, function(rank, size, *arguments))
    except BaseException:
        answer = (False, traceback.format_exc())
    # Plain pickle: what torch's own would leave in shared memory goes away with this process.
    sender.send_bytes(pickle.dumps(answer))


def _receive(rank: int, receiver: Connection, deadline: float) -> Any:
    if not receiver.poll(max(0.0, deadline - time.monotonic())):
        raise TimeoutError(f"rank {rank} did not answer within {TIMEOUT_S} s")
    done, result = pickle.loads(receiver.recv_bytes())
    assert done, f"rank {rank} failed:\n{result}"
    return result
