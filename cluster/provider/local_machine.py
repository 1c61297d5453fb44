"""Ray's node provider for a local cluster: its supervisor starts and ends the nodes, and records which there are.

Runs in the process of Ray's autoscaler (v2). It keeps nothing: after a restart it reads what there is.
"""

import secrets
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from ...models.errors import StateError
from ..local import add_node, remove_node
from ..local_nodes import LOOPBACK
from ..local_shape import RayNodeShape
from ..run_state import LocalRun, read_state

Tags = dict[str, str]


class LocalMachine(NodeProvider):
    """Nodes on this machine. Node ids are the nodes' instance ids.

    Args:
        provider_config: `run_directory` is where the cluster's supervisor records what runs.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._run_directory = Path(provider_config["run_directory"])
        # The autoscaler counts a node twice that Ray knows before its provider does.
        self._starting: dict[str, Tags] = {}

    def non_terminated_nodes(self, tag_filters: Tags) -> list[str]:
        return [name for name, own in self._all_tags().items() if tag_filters.items() <= own.items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._all_tags() and node_id not in self._starting

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._all_tags()

    def node_tags(self, node_id: str) -> Tags:
        return self._all_tags().get(node_id, {})  # none: it went since it was listed

    def external_ip(self, node_id: str) -> str:
        return LOOPBACK

    def internal_ip(self, node_id: str) -> str:
        return LOOPBACK

    def set_node_tags(self, node_id: str, tags: Tags) -> None:
        """Tags follow from what runs."""

    def create_node_with_resources_and_labels(
        self, node_config: dict[str, Any], tags: Tags, count: int, resources: dict[str, float], labels: Tags
    ) -> None:
        """Raises StateError: a node does not start; those before it stay."""
        others = {name: amount for name, amount in resources.items() if name != "CPU"}
        node_type = tags[TAG_RAY_USER_NODE_TYPE]
        shape = RayNodeShape(num_cores=round(resources.get("CPU", 0)), resources=others, node_type=node_type)
        ids = [f"{node_type}-{secrets.token_hex(4)}" for _ in range(count)]
        self._starting |= {name: _tags(name, node_type, NODE_KIND_WORKER) for name in ids}
        try:
            for name in ids:
                add_node(self._run(), shape, name)
        finally:
            for name in ids:
                del self._starting[name]

    def terminate_node(self, node_id: str) -> None:
        """Ends what is left of it; Ray has drained it, or it died."""
        run = self._run()
        for node in run.nodes[1:]:
            if node.instance_id == node_id:
                remove_node(run, node.name)

    def _all_tags(self) -> dict[str, Tags]:
        starting = dict(self._starting)  # read first: what is recorded meanwhile is in both
        head, *others = self._run().nodes
        recorded = {head.instance_id: _tags(head.name, head.node_type, NODE_KIND_HEAD)}
        recorded |= {node.instance_id: _tags(node.name, node.node_type, NODE_KIND_WORKER) for node in others}
        return starting | recorded

    def _run(self) -> LocalRun:
        try:
            run = read_state(self._run_directory).local
        except FileNotFoundError:
            run = None
        if run is None:
            raise StateError(f"no local cluster is recorded in {self._run_directory}")
        return run


def _tags(name: str, node_type: str, kind: str) -> Tags:
    return {
        TAG_RAY_NODE_KIND: kind,
        TAG_RAY_USER_NODE_TYPE: node_type,
        TAG_RAY_NODE_NAME: name,
        TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
    }
