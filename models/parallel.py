"""Tensor parallel collectives of one replica: the ranks that share a model's weights."""

import struct
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol, cast

import torch
import torch.distributed as dist

from ..kernels.ops import Exchange
from .errors import EngineError
from .shared_memory import meet_in_memory
from .symmetric_memory import OneShotSums, meet_in_symmetric_memory

_HEADER = struct.Struct("<q")
_FIRST_MESSAGE_BYTES = 4096


class _Collectives(Protocol):
    """What torch's Gloo and NCCL process groups share (the stubs do not say so)."""

    def allreduce(self, tensors: list[torch.Tensor]) -> dist.Work: ...

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor]) -> dist.Work: ...

    def broadcast(self, tensors: list[torch.Tensor], opts: dist.BroadcastOptions) -> dist.Work: ...

    def barrier(self) -> dist.Work: ...


class TpGroup:
    """`size` ranks that run the same schedule; `rank` is ours. Every method is a collective: all ranks call it.

    A dead or silent peer makes a collective raise EngineError, at the latest after the timeout given to `connect`.
    On a GPU this holds for the control collectives (`broadcast_bytes`, `agrees`, `barrier`). Others return before
    they are done; NCCL's watchdog ends the process when one fails or takes longer than the timeout, but a small
    sum, or any in a graph, waits on the GPU until somebody ends the process.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        tensors: "_Collectives | None",
        control: "_Collectives | None",
        memory: Exchange | None = None,
        small_sums: OneShotSums | None = None,
    ) -> None:
        self.rank = rank
        self.size = size
        self._tensors = tensors
        self._control = control
        self._memory = memory
        self._small_sums = small_sums

    @classmethod
    def single(cls) -> "TpGroup":
        """A group of one: nothing to communicate."""
        return cls(0, 1, None, None)

    @classmethod
    def connect(
        cls,
        rank: int,
        size: int,
        init_method: str,
        device: torch.device,
        timeout_s: float,
        *,
        shares_memory: bool = True,
    ) -> "TpGroup":
        """Meets the other ranks at `init_method` (`tcp://host:port`, served by rank 0, or `file:///path`).

        On CPU tensors and control bytes travel through memory that the ranks share, where all are on one host and
        `shares_memory`, else over gloo. On a GPU small sums go through symmetric memory, where all ranks can and
        `shares_memory`, other tensors over NCCL (RCCL), control bytes over gloo. The groups are private objects:
        torch.distributed's global group stays untouched, so a process may hold several.
        """
        if size == 1:
            return cls.single()
        timeout = timedelta(seconds=timeout_s)
        with _as_engine_error(rank, size, f"meeting at {init_method}"):
            store, _, _ = next(dist.rendezvous(init_method, rank, size, timeout=timeout))
            store.set_timeout(timeout)
            control = cast(
                _Collectives, dist.ProcessGroupGloo(dist.PrefixStore("control", store), rank, size, timeout)
            )
            if device.type == "cpu":
                memory = meet_in_memory(store, rank, size, timeout_s) if shares_memory else None
                return cls(rank, size, control, control, memory)
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timeout
            tensors = dist.ProcessGroupNCCL(dist.PrefixStore("tensors", store), rank, size, options)
            group = cls(rank, size, cast(_Collectives, tensors), control)
        if shares_memory:
            with _as_engine_error(rank, size, "symmetric memory (`shares_memory: false` does without)"):
                group._small_sums = meet_in_symmetric_memory(store, rank, size, device, timeout_s, group.all_reduce)
        return group

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place; returns `x`. Bit-identical on all ranks."""
        if self._tensors is not None:
            with _as_engine_error(self.rank, self.size, "all_reduce"):
                if self._memory is not None and self._memory.adds(x):
                    self._memory.all_reduce(x)
                elif self._small_sums is not None and self._small_sums.adds(x):
                    self._small_sums.all_reduce(x)
                else:
                    self._tensors.allreduce([x]).wait()
        return x

    def all_gather_last(self, x: torch.Tensor) -> torch.Tensor:
        """The ranks' `x` side by side along the last dimension, in rank order."""
        if self._tensors is None:
            return x
        with _as_engine_error(self.rank, self.size, "all_gather"):
            if self._memory is not None:
                return self._memory.all_gather_last(x)
            parts = [torch.empty_like(x) for _ in range(self.size)]
            self._tensors.allgather([parts], [x.contiguous()]).wait()
        return torch.cat(parts, dim=-1)

    def broadcast_bytes(self, payload: bytes | None) -> bytes:
        """Rank 0's `payload` on every rank; the others pass None."""
        if self._control is None:
            assert payload is not None
            return payload
        first = torch.zeros(_FIRST_MESSAGE_BYTES, dtype=torch.uint8)
        if payload is not None:
            head = _HEADER.pack(len(payload)) + payload[: _FIRST_MESSAGE_BYTES - _HEADER.size]
            first[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        self._broadcast(first)
        received = first.numpy().tobytes()
        (length,) = _HEADER.unpack_from(received)
        body = received[_HEADER.size : _HEADER.size + length]
        if len(body) == length:
            return body
        rest = torch.empty(length - len(body), dtype=torch.uint8)
        if payload is not None:
            rest.copy_(torch.frombuffer(bytearray(payload[len(body) :]), dtype=torch.uint8))
        self._broadcast(rest)
        return body + rest.numpy().tobytes()

    def agrees(self, yes: bool) -> bool:
        """Whether every rank says yes."""
        if self._control is None:
            return yes
        num_yes = torch.tensor([int(yes)])
        with _as_engine_error(self.rank, self.size, "agreement"):
            self._control.allreduce([num_yes]).wait()
        return int(num_yes) == self.size

    def barrier(self) -> None:
        """Returns when every rank has called it."""
        if self._control is not None:
            with _as_engine_error(self.rank, self.size, "barrier"):
                self._control.barrier().wait()

    def close(self) -> None:
        """Leaves the group. Further collectives are a mistake."""
        if self._memory is not None:
            self._memory.close()
        if self._small_sums is not None:
            self._small_sums.close()
        self._tensors = None
        self._control = None
        self._memory = None
        self._small_sums = None

    def _broadcast(self, x: torch.Tensor) -> None:
        assert self._control is not None
        options = dist.BroadcastOptions()
        options.rootRank = 0
        with _as_engine_error(self.rank, self.size, "broadcast"):
            if self._memory is not None:
                self._memory.broadcast(x)
                return
            self._control.broadcast([x], options).wait()


@contextmanager
def _as_engine_error(rank: int, size: int, what: str) -> Generator[None]:
    try:
        yield
    except (RuntimeError, ConnectionError, TimeoutError) as error:  # torch's are all RuntimeErrors
        raise EngineError(f"tensor parallel rank {rank} of {size}: {what} failed: {error}") from error
