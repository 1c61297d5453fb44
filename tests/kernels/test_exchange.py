"""Collectives through shared memory. Ranks are threads here: each has a descriptor and a lock of its own."""

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch
from nfold.kernels.avx512 import library
from nfold.kernels.ops import Exchange

TIMEOUT_S = 30.0
PLACE_BYTES = 512 << 10
Result = TypeVar("Result")


@pytest.fixture
def meet() -> Generator[Callable[..., list[Exchange]]]:
    if library.load() is None:
        pytest.skip("needs AVX-512 and a C++ compiler")
    met: list[Exchange] = []

    def meet(size: int, timeout_s: float = TIMEOUT_S) -> list[Exchange]:
        first = Exchange.new_file(size)
        files = [first, *(os.open(f"/proc/self/fd/{first}", os.O_RDWR) for _ in range(1, size))]
        met.extend(Exchange(file, rank, size, timeout_s) for rank, file in enumerate(files))
        return met

    yield meet
    for exchange in met:
        exchange.close()


def together(ranks: Sequence[Exchange], job: Callable[[int, Exchange], Result]) -> list[Result]:
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(job, range(len(ranks)), ranks))


def random(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def summed(rank: int, exchange: Exchange, xs: Sequence[torch.Tensor]) -> torch.Tensor:
    x = xs[rank].clone()
    exchange.all_reduce(x)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_sums_are_added_in_the_order_of_ranks_and_rounded_once(
    meet: Callable[..., list[Exchange]], size: int, dtype: torch.dtype
) -> None:
    ranks = meet(size)
    for num_elements in (0, 1, 16, 17, 5 * PLACE_BYTES // 8 + 3):
        xs = [random(num_elements, dtype=dtype, seed=rank) for rank in range(size)]
        wanted = xs[0].float()
        for x in xs[1:]:
            wanted = wanted + x.float()
        for got in together(ranks, lambda rank, exchange, xs=xs: summed(rank, exchange, xs)):
            assert torch.equal(got, wanted.to(dtype))


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 5), (3, 100_000), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_gathered_parts_lie_side_by_side(
    meet: Callable[..., list[Exchange]], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    parts = [(random(*shape, dtype=torch.float32, seed=rank) * 100).to(dtype) for rank in range(3)]
    for got in together(meet(3), lambda rank, exchange: exchange.all_gather_last(parts[rank])):
        assert torch.equal(got, torch.cat(parts, -1))


def test_rank_0_may_be_one_message_ahead(meet: Callable[..., list[Exchange]]) -> None:
    leader, follower = meet(2)
    for number in range(4):
        sent = torch.arange(PLACE_BYTES // 8) + number
        leader.broadcast(sent.clone())  # returns although nobody listens yet
        got = torch.zeros_like(sent)
        follower.broadcast(got)
        assert torch.equal(got, sent)


def test_collectives_follow_each_other_in_any_order(meet: Callable[..., list[Exchange]]) -> None:
    order = torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(0)).tolist()

    def talk(rank: int, exchange: Exchange) -> None:
        for number, kind in enumerate(order):
            x = torch.full((1 + number * 700,), float(number + rank))
            if kind == 0:
                exchange.all_reduce(x)
                assert (x == 3 * number + 3).all()
            elif kind == 1:
                exchange.broadcast(x)
                assert (x == number).all()
            else:
                assert (exchange.all_gather_last(x).view(3, -1)[2] == number + 2).all()

    together(meet(3), talk)


def test_who_waits_for_a_rank_that_left_is_told(meet: Callable[..., list[Exchange]]) -> None:
    stays, leaves = meet(2)
    leaves.close()
    for _ in range(2):
        with pytest.raises(ConnectionError, match=r"rank 1 is gone|has left"):
            stays.all_reduce(torch.ones(3))
    with pytest.raises(ConnectionError, match="has left"):
        leaves.broadcast(torch.ones(3))


def test_what_a_rank_said_before_it_left_is_heard(meet: Callable[..., list[Exchange]]) -> None:
    leader, follower = meet(2)
    leader.broadcast(torch.ones(3))
    leader.close()
    x = torch.zeros(3)
    follower.broadcast(x)
    assert (x == 1).all()


def test_a_silent_rank_is_an_error_and_the_others_hear_of_it(meet: Callable[..., list[Exchange]]) -> None:
    waits, silent = meet(2, 0.01)
    with pytest.raises(TimeoutError, match=r"rank 1 did not answer within 0\.01 s"):
        waits.all_reduce(torch.ones(3))
    silent.all_reduce(torch.ones(3))  # what it waited for had been said
    with pytest.raises(ConnectionError, match="rank 0 is gone"):
        silent.all_reduce(torch.ones(3))


def test_more_ranks_than_the_memory_has_places_for(meet: Callable[..., list[Exchange]]) -> None:
    with pytest.raises(OSError, match="33 ranks are more than can"):
        meet(33)
