"""How this machine's cores are shared among local nodes."""

import pytest
from nfold.cluster.local_cores import cores_per_node, next_cores
from nfold.models.errors import ConfigError


@pytest.mark.parametrize(
    ("wanted", "available", "num_nodes", "expected"),
    [("auto", 8, 2, 4), ("auto", 7, 2, 3), ("auto", 2, 3, 1), (2, 8, 2, 2), (8, 8, 2, 8)],
)
def test_cores_of_each_node(wanted: int | str, available: int, num_nodes: int, expected: int) -> None:
    assert cores_per_node(wanted, range(available), num_nodes) == expected


def test_more_cores_than_the_machine_has() -> None:
    with pytest.raises(ConfigError, match=r"cores_per_node: got 3; this machine lets us use 2"):
        cores_per_node(3, [0, 1], 1)


def test_nodes_take_free_cores_first_and_then_share() -> None:
    taken: list[tuple[int, ...]] = []
    shared: list[bool] = []
    for _ in range(3):
        cores, shares = next_cores([0, 1, 4, 5], 2, taken)
        taken.append(cores)
        shared.append(shares)
    assert taken == [(0, 1), (4, 5), (0, 1)]
    assert shared == [False, False, True]


def test_a_removed_nodes_cores_are_taken_again() -> None:
    assert next_cores([0, 1, 2, 3], 1, [(0,), (2,), (3,)]) == ((1,), False)
