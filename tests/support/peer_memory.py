"""Stands in for torch's symmetric memory among ranks on CPU. Importable by spawned processes: no pytest here."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from nfold.models.parallel import TpGroup
from nfold.models.symmetric_memory import _MOST_BYTES, OneShotSums, meet_in_symmetric_memory

CPU = torch.device("cpu")


class GlooMemory:
    """Adds as torch's kernel does: in the order of ranks, each time rounded."""

    def __init__(self, store: dist.Store, rank: int, size: int, device: torch.device) -> None:
        assert device == torch.device("cuda", rank)
        self.part = torch.zeros(_MOST_BYTES, dtype=torch.uint8)
        self.is_closed = False
        self._size = size
        self._gloo = dist.ProcessGroupGloo(dist.PrefixStore("parts", store), rank, size, timedelta(seconds=60))

    def add(self, place: torch.Tensor, out: torch.Tensor) -> None:
        assert place.data_ptr() == self.part.data_ptr()
        parts = [torch.empty_like(place) for _ in range(self._size)]
        self._gloo.allgather([[part.view(torch.uint8) for part in parts]], [place.view(torch.uint8)]).wait()
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        out.copy_(total)

    def close(self) -> None:
        self.is_closed = True


def connect_one_shot(rank: int, size: int, method: str, timeout_s: float) -> TpGroup:
    """A group like one on GPUs: small sums in one shot, and all else over the slower transport."""
    group = TpGroup.connect(rank, size, method, CPU, timeout_s, shares_memory=False)
    store = dist.FileStore(f"{Path(method.removeprefix('file://'))}-symmetric", size)
    group._small_sums = meet_in_symmetric_memory(
        store,
        rank,
        size,
        torch.device("cuda", rank),
        timeout_s,
        group.all_reduce,
        reaches=reaches_all,
        make=GlooMemory,
    )
    assert isinstance(group._small_sums, OneShotSums)
    return group


def reaches_all(ours: int, other: int) -> bool:
    assert ours != other
    return True
