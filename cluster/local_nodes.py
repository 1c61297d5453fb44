"""The Ray nodes of a local cluster, through Ray's own `Cluster` utility. Used by the supervisor alone.

Ray starts nodes from the main thread only, and on Linux each of a node's processes dies with the thread that
started it.
"""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import ray._private.node
from ray.cluster_utils import Cluster

from ..deployments.cores import CORES_LABEL, format_cores
from .local_cores import next_cores
from .local_shape import RayNodeShape
from .provider.autoscaling import NODE_TYPE_LABEL
from .run_state import LocalNode

LOOPBACK = "127.0.0.1"
JOIN_TIMEOUT_S = 10.0  # a node's share of the time that all have to join
OBJECT_STORE_BYTES = 80 << 20  # tokens do not travel through it
# No web page, no autoscaler unless asked for, no logs sent to drivers: cores are few, and nodes should have all of
# theirs.
HEAD_ARGUMENTS: dict[str, object] = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}


class LocalNodes:
    """Starts and stops Ray nodes on this machine.

    Args:
        autoscaling_config: of Ray's autoscaler, which the head then runs.
    """

    def __init__(self, autoscaling_config: Path | None = None) -> None:
        self._autoscaling_config = autoscaling_config
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

    def add(self, shape: RayNodeShape, *, wait: bool = True, instance_id: str = "") -> LocalNode:
        """Start one node; the first is the head.

        Args:
            instance_id: as the autoscaler knows it, when it was the autoscaler who asked for the node.
            wait: until the cluster knows it; else see `wait_until_known`.
        """
        cores, shares = next_cores(self._available, shape.num_cores, [node.cores for node in self.nodes])
        name = next(name for index in range(len(self._nodes) + 1) if (name := f"node-{index}") not in self._nodes)
        if self._autoscaling_config and not instance_id:
            instance_id = f"{name}-{secrets.token_hex(4)}"
        ray_node = self._cluster.add_node(
            wait=wait or not self._nodes,
            node_name=name,
            node_ip_address=LOOPBACK,
            num_cpus=len(cores),
            num_gpus=0,
            resources=shape.resources,
            object_store_memory=OBJECT_STORE_BYTES,
            labels=self._labels(shape, cores),
            env_vars={"RAY_CLOUD_INSTANCE_ID": instance_id, "RAY_NODE_TYPE_NAME": shape.node_type},
            dashboard_agent_listen_port=0,
            **self._head_arguments() if not self._nodes else {},
        )
        node = LocalNode(
            name=name,
            node_id=ray_node.node_id,
            cores=cores,
            shares_cores=shares,
            node_type=shape.node_type,
            instance_id=instance_id,
        )
        self._nodes[name] = (node, ray_node)
        return node

    def _labels(self, shape: RayNodeShape, cores: Sequence[int]) -> dict[str, str]:
        labels = {CORES_LABEL: format_cores(cores)} if cores else {}
        return labels | ({NODE_TYPE_LABEL: shape.node_type} if self._autoscaling_config else {})

    def _head_arguments(self) -> dict[str, object]:
        if self._autoscaling_config is None:
            return HEAD_ARGUMENTS
        return HEAD_ARGUMENTS | {"no_monitor": False, "autoscaling_config": str(self._autoscaling_config)}

    def wait_until_known(self) -> None:
        """Until the cluster knows all nodes that were started. Raises TimeoutError."""
        self._cluster.wait_for_nodes(JOIN_TIMEOUT_S + JOIN_TIMEOUT_S * len(self._nodes))

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
