"""Ray's nodes as the actuator sees and changes them: the GCS has those that joined, the autoscaler those that come.

Needs a connected process. The autoscaler must be v2: it tells what it waits for, and ends nodes that have drained.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.schema import ClusterStatus
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.core.generated import autoscaler_pb2
from ray.experimental.internal_kv import internal_kv_get_gcs_client

from ...models.errors import StateError
from ..provider.autoscaling import NODE_TYPE_LABEL, accelerator_of, num_accelerators
from ..provider.failures import list_failures
from .actuation import ActualNode, NodeState, NodeType

TIMEOUT_S = 10
# How long a node that failed is told of.
FAILURE_SHOWN_S = 600.0
UNKNOWN_TYPE = "unknown"


def gcs_client() -> Any:
    """Of the connected cluster."""
    client = internal_kv_get_gcs_client()
    if client is None:
        raise StateError("this process has not joined a Ray cluster")
    return client


class NodeWatch:
    """Looks at nodes. Keeps only since when one that comes or drains was seen so, which Ray does not tell."""

    def __init__(self, node_types: Sequence[NodeType]) -> None:
        self._types = {each.name: each for each in node_types}
        self._since: dict[tuple[str, NodeState], float] = {}

    def look(self, now_s: float) -> tuple[ActualNode, ...]:
        gcs = gcs_client()
        infos = list(gcs.get_all_node_info(timeout=TIMEOUT_S).values())
        nodes = [node for info in infos if (node := self._joined(info, now_s)) is not None]
        if self._types:
            status = get_cluster_status(gcs.address, timeout=TIMEOUT_S)
            nodes += self._coming(status, {info.instance_id for info in infos}, now_s)
            nodes += _not_come(status, now_s)
            nodes += _refused(gcs, now_s)
        ids = {node.node_id for node in nodes}
        self._since = {key: since for key, since in self._since.items() if key[0] in ids}
        return tuple(nodes)

    def _joined(self, info: Any, now_s: float) -> ActualNode | None:
        """None for one that ended as it should, or long ago."""
        node_id, is_head = info.node_id.hex(), bool(info.is_head_node)
        node_type = info.node_type_name or info.labels.get(NODE_TYPE_LABEL, "")
        if node_type not in self._types:
            node_type = UNKNOWN_TYPE
        if info.state == info.DEAD:
            died_s = info.end_time_ms / 1000
            unexpected = info.death_info.reason == info.death_info.UNEXPECTED_TERMINATION
            if not unexpected or now_s - died_s > FAILURE_SHOWN_S:
                return None
            reason = f"died: {info.death_info.reason_message}"
            return ActualNode(
                node_id=node_id, node_type=node_type, state=NodeState.FAILED, since_s=died_s, reason=reason
            )
        total = dict(info.resources_total)
        accelerator = accelerator_of(self._types[node_type].resources if node_type in self._types else total)
        draining = info.state_snapshot.state == info.state_snapshot.DRAINING
        state = NodeState.DRAINING if draining else NodeState.READY
        return ActualNode(
            node_id=node_id,
            node_type=node_type,
            state=state,
            since_s=self._seen(node_id, state, now_s) if draining else info.start_time_ms / 1000,
            reason="drains until nothing runs there" if draining else "",
            num_accelerators=num_accelerators(accelerator, total),
            is_head=is_head,
        )

    def _coming(self, status: ClusterStatus, joined: set[str], now_s: float) -> Iterator[ActualNode]:
        for launch in status.pending_launches:
            for index in range(launch.count):
                yield ActualNode(
                    node_id=f"{launch.ray_node_type_name}-{launch.request_ts_s}-{index}",
                    node_type=launch.ray_node_type_name,
                    state=NodeState.REQUESTED,
                    since_s=launch.request_ts_s,
                )
        for node in status.pending_nodes:
            # The autoscaler's instances have ids of their own and name the provider's in words.
            if not any(instance and instance in (node.details or "") for instance in joined):
                yield ActualNode(
                    node_id=node.instance_id,
                    node_type=node.ray_node_type_name,
                    state=NodeState.STARTING,
                    since_s=self._seen(node.instance_id, NodeState.STARTING, now_s),
                )

    def _seen(self, node_id: str, state: NodeState, now_s: float) -> float:
        return self._since.setdefault((node_id, state), now_s)


def _not_come(status: ClusterStatus, now_s: float) -> Iterator[ActualNode]:
    for launch in status.failed_launches:
        failed_s = float(launch.failed_ts_s or launch.request_ts_s)
        for index in range(launch.count if now_s - failed_s < FAILURE_SHOWN_S else 0):
            yield ActualNode(
                node_id=f"{launch.ray_node_type_name}-{launch.request_ts_s}-{index}",
                node_type=launch.ray_node_type_name,
                state=NodeState.FAILED,
                since_s=failed_s,
                reason=f"could not be started: {launch.details}",
            )


def _refused(gcs: Any, now_s: float) -> Iterator[ActualNode]:
    for failure in list_failures(gcs):
        if now_s - failure.at_s < FAILURE_SHOWN_S:
            yield ActualNode(
                node_id=failure.host,
                node_type=failure.node_type,
                state=NodeState.FAILED,
                since_s=failure.at_s,
                reason=failure.reason,
            )


def request_nodes(node_types: Sequence[NodeType], counts: Mapping[str, int]) -> None:
    """Ask Ray's autoscaler to hold so many nodes of each type; it keeps the latest request, even when all end."""
    wanted = [each for each in node_types for _ in range(counts.get(each.name, 0))]
    request_resources(
        bundles=[node_bundle(each) for each in wanted],
        bundle_label_selectors=[dict(each.labels) for each in wanted],
    )


def node_bundle(node_type: NodeType) -> dict[str, float]:
    """What one node of the type has room for once, but not twice, also when some of its accelerators are broken."""
    return {
        name: float(amount // 2 + 1) if amount > 1 else amount
        for name, amount in node_type.resources.items()
        if name not in ("memory", "object_store_memory")
    }


def drain_node(node_id: str, reason: str, timeout_s: float) -> str:
    """Ray places nothing new on this node, Serve moves its replicas away, and it ends when nothing runs there.

    Returns:
        Why Ray refuses; empty when it does not.
    """
    reasons = cast(Any, autoscaler_pb2).DrainNodeReason
    preemption = reasons.Value("DRAIN_NODE_REASON_PREEMPTION")  # the other reason is refused while anything runs
    deadline_ms = int((time.time() + timeout_s) * 1000)
    accepted, refusal = gcs_client().drain_node(node_id, preemption, reason, deadline_ms)
    return "" if accepted else str(refusal)
