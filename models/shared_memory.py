"""How the ranks of one host find memory to share."""

import logging
import os

import torch.distributed as dist

from ..kernels.ops import Exchange

_log = logging.getLogger(__name__)
_MARK_BYTES = 16
_HERE, _NONE = "here", "none"


def meet_in_memory(store: dist.Store, rank: int, size: int, timeout_s: float) -> Exchange | None:
    """None on every rank if one cannot: they are on several hosts, say. A collective over `store`.

    rank 0: a file in memory ── "pid descriptor mark" ──> the others open it, if it is there and has the mark
    every rank: "here", or what is in the way ──> all go together, or none
    """
    exchange, objection = None, None
    try:
        file = _share(store, size) if rank == 0 else _find(store)
        try:
            exchange = Exchange(file, rank, size, timeout_s)
        except OSError:
            os.close(file)
            raise
    except OSError as error:
        objection = str(error)
    found = first_objection(store, "memory", rank, size, objection)
    if found is None:
        return exchange
    _log.info("the ranks share no memory: %s", found)
    if exchange is not None:
        exchange.close()
    return None


def first_objection(store: dist.Store, topic: str, rank: int, size: int, ours: str | None) -> str | None:
    """What is in the way of the first rank that has something; None when no rank has. The same on every rank.

    A collective over `store`, once for each topic.
    """
    store.set(f"{topic} of {rank}", _HERE if ours is None else ours)
    for other in range(size):
        theirs = bytes(store.get(f"{topic} of {other}")).decode()
        if theirs != _HERE:
            return f"rank {other}: {theirs}"
    return None


def _share(store: dist.Store, size: int) -> int:
    try:
        file = Exchange.new_file(size)
    except OSError:
        store.set("memory", _NONE)
        raise
    mark = os.urandom(_MARK_BYTES)
    os.pwrite(file, mark, 0)
    store.set("memory", f"{os.getpid()} {file} {mark.hex()}")
    return file


def _find(store: dist.Store) -> int:
    told = bytes(store.get("memory")).decode()
    if told == _NONE:
        raise OSError("rank 0 has none")
    pid, number, mark = told.split()
    file = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR)
    if os.pread(file, _MARK_BYTES, 0).hex() != mark:  # a process of another host
        os.close(file)
        raise OSError("it is on another host")
    return file
