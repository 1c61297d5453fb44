import numpy as np
import pytest
from nfold.deployments.prefix_affinity import PrefixMap
from nfold.deployments.routing_policy import Candidates, assign
from numpy.typing import NDArray

A = list(range(100, 164))  # four blocks
B = [*A[:32], *range(500, 540)]  # two blocks as A, then others


def keys_of(prefixes: PrefixMap, *prompts: list[int]) -> NDArray[np.uint64]:
    flat = [token for prompt in prompts for token in prompt]
    return prefixes.keys(np.array(flat, np.int32), np.array([len(prompt) for prompt in prompts], np.int32))


def match(prefixes: PrefixMap, *prompts: list[int]) -> list[tuple[int, int]]:
    replicas, tokens = prefixes.match(keys_of(prefixes, *prompts))
    return list(zip(replicas.tolist(), tokens.tolist(), strict=True))


def note(prefixes: PrefixMap, prompt: list[int], replica: int) -> None:
    prefixes.note(keys_of(prefixes, prompt), np.array([replica]))


def test_nothing_is_known_at_first() -> None:
    assert match(PrefixMap(), A, B[:5], []) == [(-1, 0), (-1, 0), (-1, 0)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        pytest.param(A, (3, 64), id="the same"),
        pytest.param([*A, 1, 2, 3], (3, 64), id="a longer one"),
        pytest.param(A[:40], (3, 32), id="whole blocks of a shorter one"),
        pytest.param(B, (3, 32), id="as far as it is the same"),
        pytest.param(A[:15], (-1, 0), id="less than a block"),
        pytest.param(A[1:], (-1, 0), id="the same tokens elsewhere"),
        pytest.param([*A[16:32], *A[:16]], (-1, 0), id="the same blocks in another order"),
        pytest.param([A[1], A[0], *A[2:]], (-1, 0), id="the same tokens in another order"),
    ],
)
def test_the_longest_known_beginning(prompt: list[int], expected: tuple[int, int]) -> None:
    prefixes = PrefixMap()
    note(prefixes, A, 3)

    assert match(prefixes, prompt) == [expected]


def test_of_two_replicas_the_one_with_more_and_of_one_prompt_the_last() -> None:
    prefixes = PrefixMap()
    note(prefixes, A, 3)
    note(prefixes, B, 5)
    assert match(prefixes, A, B) == [(3, 64), (5, 64)]

    prefixes.note(keys_of(prefixes, A, A), np.array([7, 8]))
    assert match(prefixes, A) == [(8, 64)]


def test_a_lost_replica_is_forgotten() -> None:
    prefixes = PrefixMap()
    note(prefixes, A, 3)
    prefixes.forget(3)

    assert match(prefixes, A) == [(-1, 0)]


def test_it_is_bounded_and_keeps_what_was_used_last() -> None:
    prefixes = PrefixMap(num_keys=64, num_blocks=1)
    prompts = [[seed] * 16 for seed in range(1, 400)]
    for i, prompt in enumerate(prompts):
        note(prefixes, prompts[0], 1)
        note(prefixes, prompt, 2 + i)
    known = [replica for replica, _ in match(prefixes, *prompts) if replica >= 0]

    assert len(known) <= 64
    assert match(prefixes, prompts[0]) == [(1, 16)]
    assert match(prefixes, prompts[-1]) == [(400, 16)]


def test_many_at_once_are_all_kept() -> None:
    prefixes = PrefixMap(num_keys=1 << 14)
    random = np.random.default_rng(0)
    ids = random.integers(0, 1000, 64 * 200).astype(np.int32)
    keys = prefixes.keys(ids, np.full(200, 64, np.int32))
    prefixes.note(keys, np.arange(200))

    assert prefixes.match(keys)[0].tolist() == list(range(200))


WISHES = {
    "none": ([-1], 0.0, [1]),
    "to the one with the match, within the guard": ([0], 5.0, [0]),
    "not beyond it": ([0], 3.9, [1]),
    "until it has fallen behind by the guard": ([0, 0, 0], 9.0, [0, 1, 0]),
    "not to a full one": ([2], 100.0, [1]),
}


@pytest.mark.parametrize(("wishes", "guard_s", "chosen"), WISHES.values(), ids=WISHES.keys())
def test_a_wish_is_granted_within_the_guard(wishes: list[int], guard_s: float, chosen: list[int]) -> None:
    """Candidate 0 is 4 s behind candidate 1; 2 is full. Each request takes 10 s."""
    candidates = Candidates(np.array([9, 9, 0]), np.array([4.0, 0.0, 0.0]), np.ones(3), np.zeros(3))
    found = assign(np.full(len(wishes), 10.0), candidates, np.array(wishes), guard_s)
    assert found.tolist() == chosen
