"""Shares this machine's cores among local nodes."""

from collections import Counter
from collections.abc import Sequence

from ..models.errors import ConfigError


def cores_per_node(wanted: int | str, available: Sequence[int], num_nodes: int) -> int:
    """Cores of each node; `auto` shares evenly, one at least.

    Raises:
        ConfigError: a node wants more cores than there are.
    """
    if wanted == "auto":
        return max(1, len(available) // num_nodes)
    assert isinstance(wanted, int)
    if wanted > len(available):
        raise ConfigError(
            "cluster.local.cores_per_node", wanted, f"this machine lets us use {len(available)} cores"
        )
    return wanted


def next_cores(
    available: Sequence[int], count: int, taken: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], bool]:
    """The `count` least used cores, and whether another node has one of them."""
    uses = Counter(core for cores in taken for core in cores)
    cores = sorted(sorted(available, key=lambda core: (uses[core], core))[:count])
    return tuple(cores), any(uses[core] for core in cores)
