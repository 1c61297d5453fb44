"""All ranks sum through symmetric memory, or none does; none where sums are wrong; and all get the same bits."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from nfold.models.parallel import TpGroup
from nfold.models.symmetric_memory import (
    _MOST_BYTES,
    OneShotSums,
    PeerMemory,
    TorchMemory,
    _reaches,
    meet_in_symmetric_memory,
)
from peer_memory import GlooMemory, reaches_all

SIZE = 3
Make = Callable[[dist.Store, int, int, torch.device], PeerMemory]
Reaches = Callable[[int, int], bool]
THROUGH_NCCL = "all sums over the ranks go through NCCL, as symmetric memory is not to be had"


class Ranks:
    """Ranks that are threads. `meet` gives what each found, and keeps the memories that were made.

    Attributes:
        numbers: of the ranks' devices.
    """

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.numbers = list(range(size))
        self.made: list[GlooMemory] = []
        self.groups: dict[int, TpGroup] = {}
        self._store = dist.HashStore()

    def meet(self, make: Make = GlooMemory, reaches: Reaches = reaches_all) -> list[OneShotSums | None]:
        def made(*arguments: object) -> PeerMemory:
            memory = make(*arguments)
            if isinstance(memory, GlooMemory):
                self.made.append(memory)
            return memory

        def one(rank: int) -> OneShotSums | None:
            store = dist.PrefixStore("gloo", self._store)
            gloo = dist.ProcessGroupGloo(store, rank, self.size, timedelta(seconds=60))
            group = TpGroup(rank, self.size, gloo, gloo)
            device = torch.device("cuda", self.numbers[rank])
            group._small_sums = meet_in_symmetric_memory(
                self._store, rank, self.size, device, 60.0, group.all_reduce, reaches=reaches, make=made
            )
            self.groups[rank] = group
            return group._small_sums

        return self.together(one)

    def together(self, call: Callable[[int], Any]) -> list[Any]:
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(call, range(self.size)))


def test_ranks_that_can_all_sum_there(caplog: pytest.LogCaptureFixture) -> None:
    ranks = Ranks()
    with caplog.at_level(logging.INFO):
        assert None not in ranks.meet()
    assert caplog.text.count("sums of up to 256 KiB over the ranks are one-shot") == SIZE
    assert not any(memory.is_closed for memory in ranks.made)


def test_ranks_that_see_only_their_own_gpus_sum_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    ranks = Ranks()
    ranks.numbers = [0, 1, 0]
    assert ranks.meet() == [None] * SIZE
    assert ranks.made == []
    reason = f"{THROUGH_NCCL}: rank 0: rank 2 also sees its GPU as cuda:0; each must see all GPUs of the replica"
    assert caplog.messages == [reason] * SIZE


def test_gpus_out_of_reach_sum_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    ranks = Ranks()
    ranks.numbers = [7, 5, 3]
    assert ranks.meet(reaches=lambda ours, other: (ours, other) != (5, 3)) == [None] * SIZE
    assert caplog.messages == [f"{THROUGH_NCCL}: rank 1: cuda:5 cannot reach the memory of rank 2's cuda:3"] * SIZE


def test_there_is_none_with_rocm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    ranks = Ranks()
    assert ranks.meet() == [None] * SIZE
    assert ranks.made == []


def test_where_one_rank_fails_none_sums_there(caplog: pytest.LogCaptureFixture) -> None:
    def make(store: dist.Store, rank: int, size: int, device: torch.device) -> PeerMemory:
        if rank == 1:
            raise RuntimeError("CUDA driver error: invalid device\nstack of torch")
        memory = GlooMemory.__new__(GlooMemory)  # its own meeting would wait for rank 1
        memory.is_closed = False
        return memory

    ranks = Ranks()
    assert ranks.meet(make) == [None] * SIZE
    assert [memory.is_closed for memory in ranks.made] == [True, True]
    assert caplog.messages == [f"{THROUGH_NCCL}: rank 1: CUDA driver error: invalid device"] * SIZE


class WrongMemory(GlooMemory):
    """Rank 2 reads a part before it is there."""

    def __init__(self, store: dist.Store, rank: int, size: int, device: torch.device) -> None:
        super().__init__(store, rank, size, device)
        self._rank = rank

    def add(self, place: torch.Tensor, out: torch.Tensor) -> None:
        super().add(place, out)
        if self._rank == 2:
            out.view(-1)[-1] += 1


class ChangedMemory(GlooMemory):
    """torch without the kernel."""

    def add(self, place: torch.Tensor, out: torch.Tensor) -> None:
        raise AttributeError("'_OpNamespace' 'symm_mem' object has no attribute 'one_shot_all_reduce_out'")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (WrongMemory, "rank 2: a sum of 16 bytes of torch.bfloat16 is not what NCCL brings"),
        (ChangedMemory, "rank 0: a sum of 16 bytes of torch.bfloat16 failed: '_OpNamespace'"),
    ],
)
def test_where_sums_are_wrong_none_is_done_there(make: Make, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    ranks = Ranks()
    assert ranks.meet(make) == [None] * SIZE
    assert all(memory.is_closed for memory in ranks.made)
    assert len(ranks.made) == SIZE
    assert caplog.text.count(f"{THROUGH_NCCL}: {reason}") == SIZE


def test_torch_without_symmetric_memory_says_why() -> None:
    """As on a CPU."""
    for _ in range(2):  # the first leaves nothing behind that keeps the second from meeting
        with pytest.raises(RuntimeError, match="SymmetricMemory does not support device type cpu"):
            TorchMemory(dist.HashStore(), 0, 1, torch.device("cpu"))
    assert not _reaches(0, 5)


def float32_sum(parts: list[torch.Tensor]) -> torch.Tensor:
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return total.to(parts[0].dtype)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_are_in_the_order_of_ranks_and_rounded_once(size: int, dtype: torch.dtype) -> None:
    parts = [torch.randn(7, 64, generator=torch.Generator().manual_seed(rank)).to(dtype) for rank in range(size)]
    ranks = Ranks(size)
    sums = ranks.meet()

    def add(rank: int) -> torch.Tensor:
        summing, x = sums[rank], parts[rank].clone()
        assert summing is not None
        assert summing.adds(x)
        summing.all_reduce(x)
        return x

    wanted = float32_sum(parts)
    for _ in range(2):
        assert all(torch.equal(got, wanted) for got in ranks.together(add))
    rounded_each_time = parts[0]
    for part in parts[1:]:
        rounded_each_time = rounded_each_time + part
    assert torch.equal(rounded_each_time, wanted) == (size == 2 or dtype == torch.float32)


class OneRankMemory:
    def __init__(self) -> None:
        self.part = torch.zeros(_MOST_BYTES, dtype=torch.uint8)

    def add(self, place: torch.Tensor, out: torch.Tensor) -> None:
        raise AssertionError

    def close(self) -> None:
        pass


def test_what_is_small_and_lies_well() -> None:
    of_two, of_eight = (OneShotSums(OneRankMemory(), size) for size in (2, 8))
    rows = torch.zeros(17, 8192, dtype=torch.bfloat16)
    assert of_two.adds(rows[:16])
    assert not of_two.adds(rows)
    assert of_eight.adds(rows[:8])  # in float32 on its way
    assert not of_eight.adds(rows[:9])
    for sums in (of_two, of_eight):
        assert sums.adds(rows[:8].float())
        assert not sums.adds(rows.float()[:9])
        assert not sums.adds(rows[:4].half())
        assert not sums.adds(rows[:4, :4096])
        assert not sums.adds(rows[:0])
        assert not sums.adds(rows[0, :7])
        assert not sums.adds(rows.view(-1)[1:9])


def test_a_group_sums_small_tensors_there_and_others_elsewhere() -> None:
    ranks = Ranks()
    ranks.meet()
    for memory in ranks.made:
        memory.add = lambda place, out: out.fill_(-1.0)

    def sums_of(rank: int) -> list[list[float]]:
        group = ranks.groups[rank]
        lengths = (_MOST_BYTES // 4, _MOST_BYTES // 4 + 4)
        return [group.all_reduce(torch.ones(length)).unique().tolist() for length in lengths]

    assert ranks.together(sums_of) == [[[-1.0], [3.0]]] * SIZE
    for group in ranks.groups.values():
        group.close()
    assert all(memory.is_closed for memory in ranks.made)
