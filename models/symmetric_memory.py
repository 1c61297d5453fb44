"""Small sums over the GPUs of one host: each rank reads all parts from the other GPUs' memory at once, over NVLink,
where NCCL takes several hops. The kernel is torch's.

    x ── copied, widened ──> our part ── all have written? ── add all ── all have read? ──> sum ── rounded ──> x
         a kernel                        a kernel, which adds in the order of ranks                a kernel

torch tells two ranks' GPUs apart by their number, so each rank's process must see all GPUs of its replica. For CUDA
only: on ROCm torch 2.11 maps the memory of peers twice, and its own tests of it hung.
"""

import itertools
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from .shared_memory import first_objection

AllReduce = Callable[[torch.Tensor], torch.Tensor]

_log = logging.getLogger(__name__)
# Every rank reads the parts of all: beyond this, hops that carry a share of the sum each move less and are faster.
# Where torch's own choice between such kernels lies (c10d's intra_node_comm); we had no GPUs to measure it on.
_MOST_BYTES = 256 << 10
_ALIGNMENT = 16  # of the kernel's loads and stores
_MEETING_TIMEOUT_S = 60.0
_FIRST_SIGNAL_TIMEOUT_MS = 10_000
_DTYPES = (torch.bfloat16, torch.float32)
# torch's interface is a private one: what it raises where it is broken, missing or has changed.
_FAILURES = (RuntimeError, AttributeError, TypeError, ImportError)
_numbers = itertools.count()


class PeerMemory(Protocol):
    """Memory of which each rank has a part and reads those of the others.

    Attributes:
        part: uint8, ours; as long as everybody's.
    """

    part: torch.Tensor

    def add(self, place: torch.Tensor, out: torch.Tensor) -> None:
        """`out` becomes the sum over ranks of what lies at `place`, at the beginning of `part`.

        Parts are added in the order of ranks, each time rounded to their type. A collective.
        """
        ...

    def close(self) -> None: ...


class OneShotSums:
    """Sums in the order of ranks in float32, rounded once, so all ranks have the same bits, whether eager or in a
    graph. Every sum is a collective."""

    def __init__(self, memory: PeerMemory, size: int) -> None:
        self._memory = memory
        # The sum of two is rounded once anyhow.
        self._is_widened = size > 2

    def adds(self, x: torch.Tensor) -> bool:
        """Whether `all_reduce` takes this tensor; the same on every rank."""
        return (
            x.dtype in _DTYPES
            and 0 < x.numel() * self._dtype(x).itemsize <= len(self._memory.part)
            and x.is_contiguous()
            and x.nbytes % _ALIGNMENT == x.storage_offset() * x.itemsize % _ALIGNMENT == 0
        )

    def all_reduce(self, x: torch.Tensor) -> None:
        """x becomes the sum over ranks."""
        dtype = self._dtype(x)
        # A kernel of its own. torch's `one_shot_all_reduce_copy` would save it, but tells the others that a part is
        # there when the first warp of a block has written, without waiting for the rest.
        place = self._memory.part[: x.numel() * dtype.itemsize].view(dtype).view(x.shape)
        place.copy_(x)
        if dtype == x.dtype:
            self._memory.add(place, x)
            return
        total = torch.empty_like(place)
        self._memory.add(place, total)
        x.copy_(total)

    def close(self) -> None:
        self._memory.close()

    def _dtype(self, x: torch.Tensor) -> torch.dtype:
        return torch.float32 if self._is_widened else x.dtype


class TorchMemory:
    """torch's symmetric memory. Making one is a collective; raises what torch raises where it cannot be set up."""

    def __init__(self, store: dist.Store, rank: int, size: int, device: torch.device) -> None:
        # Private in torch, and of no use on a CPU, so not imported with this module.
        from torch._C._distributed_c10d import _register_process_group, _SymmetricMemory
        from torch.distributed import _symmetric_memory

        self._name: Any = f"nfold-{next(_numbers)}"
        # torch finds the ranks by the name of a group; this one has no collectives of its own.
        _register_process_group(self._name, dist.ProcessGroup(store, rank, size))
        try:
            _SymmetricMemory.set_group_info(self._name, rank, size, store)
            self.part = _symmetric_memory.empty(_MOST_BYTES, dtype=torch.uint8, device=device)
            # A wait with an end: the sums' own would last for ever where signals do not arrive.
            _symmetric_memory.rendezvous(self.part, self._name).barrier(0, _FIRST_SIGNAL_TIMEOUT_MS)
            torch.cuda.synchronize(device)
        except BaseException:
            self.close()
            raise

    def add(self, place: torch.Tensor, out: torch.Tensor) -> None:
        torch.ops.symm_mem.one_shot_all_reduce_out(place, "sum", self._name, out)

    def close(self) -> None:
        from torch._C._distributed_c10d import _unregister_process_group

        _unregister_process_group(self._name)


def _reaches(ours: int, other: int) -> bool:
    return other < torch.cuda.device_count() and torch.cuda.can_device_access_peer(ours, other)


def meet_in_symmetric_memory(
    store: dist.Store,
    rank: int,
    size: int,
    device: torch.device,
    timeout_s: float,
    all_reduce: AllReduce,
    *,
    reaches: Callable[[int, int], bool] = _reaches,
    make: Callable[[dist.Store, int, int, torch.device], PeerMemory] = TorchMemory,
) -> OneShotSums | None:
    """None on every rank if one cannot, or if its sums are not those of `all_reduce`. A collective.

    every rank: devices ──> memory ──> sums, and after each what is in the way, if anything ──> all go on, or none

    Args:
        device: this rank's, by its number among those that the process sees.
        timeout_s: of the store.
        reaches: whether the device of this number can read the memory of that one.
        make: see `TorchMemory`.
    """
    if torch.version.hip is not None:
        _log.info("all sums over the ranks go through RCCL: torch's symmetric memory is not safe with ROCm")
        return None
    memory, objection = None, None
    store = dist.PrefixStore("symmetric memory", store)
    found = first_objection(store, "devices", rank, size, _out_of_reach(store, rank, size, device.index, reaches))
    if found is None:
        # What fails on one rank keeps the others waiting.
        store.set_timeout(timedelta(seconds=_MEETING_TIMEOUT_S))
        try:
            memory = make(store, rank, size, device)
        except _FAILURES as error:
            objection = _first_line(error)
        finally:
            store.set_timeout(timedelta(seconds=timeout_s))
        found = first_objection(store, "memory", rank, size, objection)
    if memory is not None and found is None:
        sums = OneShotSums(memory, size)
        found = first_objection(store, "sums", rank, size, _wrong_sums(sums, rank, memory.part.device, all_reduce))
        if found is None:
            _log.info("sums of up to %d KiB over the ranks are one-shot (symmetric memory)", _MOST_BYTES >> 10)
            return sums
    if memory is not None:
        memory.close()
    _log.warning("all sums over the ranks go through NCCL, as symmetric memory is not to be had: %s", found)
    return None


def _out_of_reach(
    store: dist.Store, rank: int, size: int, ours: int, reaches: Callable[[int, int], bool]
) -> str | None:
    """Which other rank's GPU this one cannot reach, and why; None when it reaches all. A collective."""
    store.set(f"device of {rank}", str(ours))
    for other in range(size):
        theirs = int(store.get(f"device of {other}"))
        if other == rank:
            continue
        if theirs == ours:
            return f"rank {other} also sees its GPU as cuda:{ours}; each must see all GPUs of the replica"
        if not reaches(ours, theirs):
            return f"cuda:{ours} cannot reach the memory of rank {other}'s cuda:{theirs}"
    return None


def _wrong_sums(sums: OneShotSums, rank: int, device: torch.device, all_reduce: AllReduce) -> str | None:
    """What is wrong with sums of small integers, exact in any order; None when nothing is. A collective."""
    wrong = None
    for dtype in _DTYPES:
        for nbytes in (_ALIGNMENT, 4096, _MOST_BYTES // 2, _ALIGNMENT):
            numbers = (torch.arange(nbytes // dtype.itemsize, device=device) + 3 * rank) % 13 - 6
            x = numbers.to(dtype)
            wanted = all_reduce(x.clone())
            assert sums.adds(x)
            try:
                sums.all_reduce(x)
                fault = None if torch.equal(x, wanted) else "is not what NCCL brings"
            except _FAILURES as error:
                fault = f"failed: {_first_line(error)}"
            if fault is not None:  # and go on, as the others do
                wrong = wrong or f"a sum of {nbytes} bytes of {dtype} {fault}"
    return wrong


def _first_line(error: BaseException) -> str:
    """torch appends the whole stack."""
    return str(error).partition("\n")[0] or type(error).__name__
