"""The Ray nodes of a local cluster, through Ray's own `Cluster` utility. Used by the supervisor alone.

Ray starts nodes from the main thread only, and on Linux each of a node's processes dies with the thread that
started it.
"""

import os

import ray._private.node
from ray.cluster_utils import Cluster

from ..deployments.cores import CORES_LABEL, format_cores
from .local_cores import next_cores
from .run_state import LocalNode

LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 80 << 20  # tokens do not travel through it
# No web page, no autoscaler, no logs sent to drivers: cores are few, and nodes should have all of theirs.
HEAD_ARGUMENTS = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}


class LocalNodes:
    """Starts and stops Ray nodes on this machine.

    Args:
        cores_per_node: CPU cores of each.
    """

    def __init__(self, cores_per_node: int) -> None:
        self._cores_per_node = cores_per_node
        self._available = sorted(os.sched_getaffinity(0))
        self._cluster = Cluster()
        self._nodes: dict[str, tuple[LocalNode, ray._private.node.Node]] = {}

    @property
    def nodes(self) -> tuple[LocalNode, ...]:
        return tuple(node for node, _ in self._nodes.values())

    @property
    def address(self) -> str:
        assert self._cluster.address is not None
        return self._cluster.address

    @property
    def head_is_alive(self) -> bool:
        """Whether the processes that the cluster cannot live without still run."""
        head = self._cluster.head_node
        return head is not None and not {"gcs_server", "raylet"} & {kind for kind, _ in head.dead_processes()}

    def add(self) -> LocalNode:
        """Start one node; the first is the head. Returns when the cluster knows it."""
        cores, shares = next_cores(self._available, self._cores_per_node, [node.cores for node in self.nodes])
        name = next(name for index in range(len(self._nodes) + 1) if (name := f"node-{index}") not in self._nodes)
        ray_node = self._cluster.add_node(
            node_name=name,
            node_ip_address=LOOPBACK,
            num_cpus=len(cores),
            num_gpus=0,
            object_store_memory=OBJECT_STORE_BYTES,
            labels={CORES_LABEL: format_cores(cores)},
            dashboard_agent_listen_port=0,
            **HEAD_ARGUMENTS if not self._nodes else {},
        )
        node = LocalNode(name=name, node_id=ray_node.node_id, cores=cores, shares_cores=shares)
        self._nodes[name] = (node, ray_node)
        return node

    def remove(self, name: str) -> None:
        """Stop one node, which must not be the head. Its replicas should have drained before."""
        _, ray_node = self._nodes[name]
        assert ray_node is not self._cluster.head_node, "the head goes last, with the cluster"
        self._cluster.remove_node(ray_node)
        del self._nodes[name]

    def close(self) -> None:
        """Stop all nodes."""
        self._cluster.shutdown()
        self._nodes.clear()
