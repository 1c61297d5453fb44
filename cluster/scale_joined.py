"""More or fewer nodes of a running Ray cluster under one pool. Needs a connected process."""

import time
from dataclasses import replace

from ray.autoscaler.sdk import request_resources

from ..deployments.config import PoolConfig
from ..deployments.nodes import alive_nodes
from ..deployments.placement import NodeResources, bundles, check_fit, replicas_that_fit
from ..models.errors import StateError
from .config import NfoldConfig
from .pool_scaling import replica_counts, scale_pools
from .service import Progress

LOOK_S = 5.0


def scale_to_nodes(config: NfoldConfig, pool: str, num_nodes: int, timeout_s: float, progress: Progress) -> None:
    """Fill the nodes that are there, ask Ray's autoscaler for the others, and fill those as they come.

    With fewer nodes than now, Serve picks the replicas that go, by preference those that leave a node empty; the
    autoscaler, where there is one, ends empty nodes.

    Raises:
        PlacementError: no node can hold a replica.
        StateError: the nodes are not there in time; what is there serves.
    """
    settings = config.pools[pool]
    give_up_at, asked, filled = time.monotonic() + timeout_s, False, 0
    while True:
        rooms = _rooms(settings, pool)
        if not asked:
            request_resources(bundles=[_one_bundle(settings, rooms[0])] * num_nodes)
            asked = True
        usable = min(num_nodes, len(rooms))
        if usable != filled:
            scale_pools(config, {pool: _within_free(config, pool, sum(rooms[:usable]))}, progress)
            filled = usable
        if usable == num_nodes:
            return
        if time.monotonic() > give_up_at:
            raise StateError(
                f"{usable} of {num_nodes} nodes are there after {timeout_s:.0f} s and serve {pool}. Ray's "
                "autoscaler keeps the request (see `ray status`); run `nfold scale` again when more have joined"
            )
        progress(f"{usable} of {num_nodes} nodes; waiting for Ray's autoscaler")
        time.sleep(LOOK_S)


def _rooms(settings: PoolConfig, pool: str) -> list[int]:
    """Replicas that each node can hold when it has no others, the roomiest first, nodes for none left out."""
    nodes = [replace(node, free=node.total) for node in alive_nodes()]
    rooms = sorted((replicas_that_fit(settings, [node]) for node in nodes), reverse=True)
    if not rooms or not rooms[0]:
        _refuse(settings, pool, nodes)
    return [room for room in rooms if room]


def _refuse(settings: PoolConfig, pool: str, nodes: list[NodeResources]) -> None:
    check_fit({pool: settings.model_copy(update={"num_replicas": 1})}, nodes)
    raise AssertionError("check_fit finds room where replicas_that_fit finds none")


def _one_bundle(settings: PoolConfig, num_replicas: int) -> dict[str, float]:
    """What all replicas of a node need, as one bundle, so that each bundle takes a node of its own."""
    total: dict[str, float] = {}
    for bundle in bundles(settings) * num_replicas:
        for resource, amount in bundle.items():
            total[resource] = total.get(resource, 0.0) + amount
    return total


def _within_free(config: NfoldConfig, pool: str, wanted: int) -> int:
    """Other models may have part of the nodes."""
    free = replicas_that_fit(config.pools[pool], alive_nodes())
    return min(wanted, replica_counts(config)[pool] + free)
