import numpy as np
import pytest
from nfold.models.engine.block_pool import ROOT_HASH, BlockPool, chain_hash


def hashes(*tokens: int) -> list[bytes]:
    """Chained hashes of blocks of one token each."""
    chain = [ROOT_HASH]
    for token in tokens:
        chain.append(chain_hash(chain[-1], np.array([token], np.int32)))
    return chain[1:]


def fill(pool: BlockPool, chain: list[bytes]) -> list[int]:
    blocks = pool.allocate(len(chain))
    for block, block_hash in zip(blocks, chain, strict=True):
        pool.register(block, block_hash)
    return blocks


def test_a_hash_depends_on_all_tokens_before() -> None:
    assert hashes(1, 2, 3)[:2] == hashes(1, 2)
    assert hashes(1, 2)[1] != hashes(3, 2)[1]


def test_blocks_in_use_are_not_handed_out_again() -> None:
    pool = BlockPool(4)
    first = pool.allocate(3)
    second = pool.allocate(1)
    assert sorted(first + second) == [0, 1, 2, 3]
    assert pool.num_free == 0
    with pytest.raises(AssertionError, match="1 blocks wanted, 0 free"):
        pool.allocate(1)


def test_released_blocks_are_found_until_they_are_evicted() -> None:
    pool, chain = BlockPool(4), hashes(1, 2)
    blocks = fill(pool, chain)
    pool.release(blocks)
    assert pool.num_free == 4
    assert pool.match(hashes(1, 2, 9)) == blocks
    assert pool.match(hashes(9, 1, 2)) == []
    pool.allocate(3)  # the two that hold nothing, then the end of the chain
    assert pool.match(chain) == blocks[:1]
    pool.allocate(1)
    assert pool.match(chain) == []


def test_the_least_recently_released_goes_first() -> None:
    pool = BlockPool(2)
    old, new = fill(pool, hashes(1)), fill(pool, hashes(2))
    pool.release(old)
    pool.release(new)
    pool.acquire(old)
    pool.release(old)
    assert pool.allocate(1) == new


def test_a_shared_block_is_free_when_its_last_user_leaves() -> None:
    pool = BlockPool(3)
    blocks = fill(pool, hashes(1, 2))
    assert pool.count_free(blocks) == 0
    pool.acquire(blocks)
    pool.release(blocks)
    assert pool.num_free == 1
    pool.release(blocks)
    assert (pool.num_free, pool.count_free(blocks)) == (3, 2)
    pool.acquire(blocks[:1])
    assert (pool.num_free, pool.count_free(blocks)) == (2, 1)


def test_releasing_twice_is_caught() -> None:
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(blocks)


def test_of_two_equal_blocks_the_first_stays_known() -> None:
    pool = BlockPool(2)
    first, second = fill(pool, hashes(1)), fill(pool, hashes(1))
    pool.release(second)
    pool.release(first)
    assert pool.match(hashes(1)) == first
    assert pool.allocate(2) == second + first
    assert pool.match(hashes(1)) == []
