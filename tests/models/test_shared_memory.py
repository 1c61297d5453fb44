"""All ranks share memory, or none does."""

import logging
import os
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from nfold.kernels.avx512 import library
from nfold.kernels.ops import Exchange
from nfold.models.shared_memory import meet_in_memory

TIMEOUT_S = 30.0


@pytest.fixture
def store() -> dist.Store:
    return dist.HashStore()


@pytest.fixture
def memory() -> Generator[int]:
    if library.load() is None:
        pytest.skip("needs AVX-512 and a C++ compiler")
    file = Exchange.new_file(2)
    yield file
    os.close(file)


def meet_all(store: dist.Store, size: int) -> list[Exchange | None]:
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: meet_in_memory(store, rank, size, TIMEOUT_S), range(size)))


@pytest.mark.usefixtures("memory")
def test_ranks_of_one_host_share_memory(store: dist.Store) -> None:
    first, second = meet_all(store, 2)
    assert first is not None
    assert second is not None
    first.broadcast(torch.ones(3))
    x = torch.zeros(3)
    second.broadcast(x)
    assert (x == 1).all()
    first.close()
    second.close()


def test_without_memory_on_rank_0_there_is_none(store: dist.Store, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert meet_all(store, 33) == [None] * 33
    assert "the ranks share no memory: rank 0" in caplog.text


@pytest.mark.parametrize(("process", "reason"), [(os.getpid(), "another host"), (2**22 + 1, "No such file")])
def test_a_rank_of_another_host_shares_none(
    store: dist.Store, memory: int, process: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.set("memory", f"{process} {memory} {'ab' * 16}")
    store.set("memory of 0", "here")
    with caplog.at_level(logging.INFO):
        assert meet_in_memory(store, 1, 2, TIMEOUT_S) is None
    assert reason in caplog.text


def test_a_rank_whose_peer_cannot_shares_none(store: dist.Store) -> None:
    store.set("memory of 1", "it has no compiled ops")
    assert meet_in_memory(store, 0, 2, TIMEOUT_S) is None
