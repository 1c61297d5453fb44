"""More or fewer nodes of a local cluster, while it serves. Needs a connected process."""

import time
from collections import Counter
from collections.abc import Sequence

from ..deployments import discovery
from ..deployments.nodes import alive_nodes
from ..deployments.placement import CPU, check_fit, replicas_that_fit
from ..models.errors import StateError
from . import local as local_cluster
from .config import NfoldConfig
from .controller.actuator_nodes import drain_node
from .pool_scaling import POLL_S, replica_counts, scale_pools, wait_settled
from .run_state import LocalNode, LocalRun
from .service import DRAIN_SLACK_S, Progress

NODE_TIMEOUT_S = 30.0


def grow(config: NfoldConfig, run: LocalRun, pool: str, num_nodes: int, progress: Progress) -> None:
    """Start nodes until there are `num_nodes`, and fill what is free with replicas of `pool`.

    Raises:
        StateError: a node or a replica does not come in time.
    """
    added: list[LocalNode] = []
    for number in range(len(run.nodes), num_nodes):
        progress(f"starting node {number + 1} of {num_nodes}")
        added.append(local_cluster.add_node(run))
    for node in added:
        if node.shares_cores:
            cores = ", ".join(map(str, node.cores))
            progress(f"{node.name} shares CPU core {cores} with another node: it adds replicas, not speed")
    _wait_until_known({node.node_id for node in added})
    free = replicas_that_fit(config.pools[pool], alive_nodes())
    scale_pools(config, {pool: replica_counts(config)[pool] + free}, progress)


def _wait_until_known(node_ids: set[str]) -> None:
    """Until Ray's scheduler knows what these nodes have free."""
    give_up_at = time.monotonic() + NODE_TIMEOUT_S
    while missing := node_ids - {node.node_id for node in alive_nodes() if node.free.get(CPU)}:
        if time.monotonic() > give_up_at:
            raise StateError(f"nodes {', '.join(sorted(missing))} did not join within {NODE_TIMEOUT_S:g} s")
        time.sleep(POLL_S)


def shrink(config: NfoldConfig, run: LocalRun, num_nodes: int, progress: Progress) -> None:
    """End all but `num_nodes` nodes, once their replicas have finished; each pool keeps one replica at least.

    Replicas go first, and Serve picks which: by preference those that leave nodes empty. The emptiest nodes follow.
    Draining nodes first would make Serve start replacements that find no room, and wait for them when they stop.

    Raises:
        PlacementError: a pool has replicas on the nodes that go only, and the others have no room for one.
        StateError: replicas or nodes do not end in time.
    """
    progress(f"making room to end {len(run.nodes) - num_nodes} of {len(run.nodes)} nodes")
    scale_pools(config, _targets_on(config, _fullest(config, run, num_nodes)), progress)
    staying = _fullest(config, run, num_nodes)
    going = [node for node in run.nodes if node not in staying]
    progress(f"draining {', '.join(node.name for node in going)}")
    for node in going:
        _drain(node, config.drain_timeout_s + DRAIN_SLACK_S)
    wait_settled(config, replica_counts(config), progress)
    for node in going:
        progress(f"stopping {node.name}")
        local_cluster.remove_node(run, node.name)


def _fullest(config: NfoldConfig, run: LocalRun, num_nodes: int) -> list[LocalNode]:
    """The head, and of the others those with the most replicas; of equal ones, the first."""
    replicas = Counter(replica.node_id for replica in discovery.list_replicas(config.name))
    head, *others = run.nodes
    others.sort(key=lambda node: -replicas[node.node_id])
    return [head, *others[: num_nodes - 1]]


def _targets_on(config: NfoldConfig, staying: Sequence[LocalNode]) -> dict[str, int]:
    """Replicas of each pool that these nodes are to have: those on them now, else one that moves there."""
    ids = {node.node_id for node in staying}
    kept = dict.fromkeys(config.pools, 0)
    for replica in discovery.list_replicas(config.name):
        kept[replica.pool] += replica.node_id in ids
    homeless = {name: config.pools[name].model_copy(update={"num_replicas": 1}) for name in kept if not kept[name]}
    return kept | check_fit(homeless, [node for node in alive_nodes() if node.node_id in ids])


def _drain(node: LocalNode, timeout_s: float) -> None:
    """Ray places nothing new on this node, and Serve moves away what it still has there."""
    refusal = drain_node(node.node_id, "nfold scale", timeout_s)
    if refusal:
        raise StateError(f"Ray does not drain {node.name}: {refusal}")
