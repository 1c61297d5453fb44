"""Nodes through Ray's autoscaler (v2), replicas through Serve's external scaling. Needs a connected process.

It keeps nothing that counts: what was asked of Ray and Serve is read back from them, so it may be killed between
any two steps, and another one goes on from there.
"""

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ray.exceptions import RayError

from ...deployments.application import scale_gateways, scale_pool
from ...deployments.nodes import alive_nodes
from ...deployments.placement import NodeResources
from ...deployments.serve_details import Deployments, deployments_of
from ...models.errors import StateError
from ..config import NfoldConfig
from ..provider.autoscaling import read_node_types
from ..provider.local_types import cores_of_a_node, local_node_types
from .actuation import Actual, ActualReplica, NodeState, NodeType, Target
from .actuator_nodes import NodeWatch, drain_node, request_nodes
from .actuator_serve import end_replica, gateways_in, pools_in, replicas_in
from .actuator_steps import next_steps

logger = logging.getLogger(__name__)

# A draining replica has the service's time to finish; what Ray ends after that has hung.
DRAIN_SLACK_S = 60.0
# Where `ray up` leaves on the head what its autoscaler works by.
BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")


def find_node_types(config: NfoldConfig) -> tuple[NodeType, ...]:
    """What the cluster's autoscaler can be asked for. Call it on the head.

    Raises:
        ConfigError: the autoscaler's YAML is wrong.
    """
    local = config.cluster.local_or_default
    if local is not None:
        return local_node_types(local, cores_of_a_node(local)) if local.is_autoscaled else ()
    path = BOOTSTRAP_CONFIG.expanduser()
    return read_node_types(path) if path.exists() else ()


class RayActuator:
    """The `Actuator` of a service on the connected cluster.

    Args:
        node_types: what Ray's autoscaler can be asked for; none where there is no autoscaler, and then nodes are as
            they are.
    """

    def __init__(
        self, config: NfoldConfig, node_types: Sequence[NodeType], clock: Callable[[], float] = time.time
    ) -> None:
        self._config = config
        self._node_types = tuple(node_types)
        self._clock = clock
        self._watch = NodeWatch(node_types)

    def observe(self) -> Actual:
        with _cluster_answers():
            return self._actual(deployments_of(self._config.name))

    def converge(self, target: Target) -> None:
        with _cluster_answers():
            deployments = deployments_of(self._config.name)
            actual = self._actual(deployments)
            resources = {node.node_id: node for node in alive_nodes()}
            steps = next_steps(actual, target, self._config.pools, resources)
            if self._node_types:
                request_nodes(self._node_types, steps.nodes)
            for pool in actual.pools:
                if steps.replicas[pool.pool] != pool.wanted:
                    logger.info("%s: %d -> %d replicas", pool.pool, pool.wanted, steps.replicas[pool.pool])
                    scale_pool(self._config.name, pool.pool, steps.replicas[pool.pool])
            if self._gateways_fit(deployments, actual, steps.drain, resources):
                self._drain(steps.drain, target)
            self._replace(actual.replicas, target)

    def _actual(self, deployments: Deployments) -> Actual:
        now_s = self._clock()
        pools = self._config.pools
        return Actual(
            time_s=now_s,
            node_types=self._node_types,
            nodes=self._watch.look(now_s),
            pools=pools_in(deployments, pools),
            replicas=replicas_in(deployments, pools),
        )

    def _gateways_fit(
        self, deployments: Deployments, actual: Actual, going: Sequence[str], resources: Mapping[str, NodeResources]
    ) -> bool:
        """Gateways for the machines that stay. False while one of a machine that goes has not been picked to end:
        Serve would look for another machine for it, and the autoscaler would bring one."""
        staying = [node for node in actual.nodes if node.state == NodeState.READY and node.node_id not in going]
        machines = {resources[node.node_id].address for node in staying if node.node_id in resources}
        gateways, wanted = gateways_in(deployments), len(machines) * self._config.http.gateways
        if machines and wanted != gateways.wanted:
            logger.info("%d -> %d gateways", gateways.wanted, wanted)
            scale_gateways(self._config.name, wanted)
            return wanted > gateways.wanted
        return gateways.running + gateways.starting <= gateways.wanted

    def _drain(self, node_ids: Sequence[str], target: Target) -> None:
        for node_id in node_ids:
            reason = f"decision {target.decision} of nfold's controller"
            refusal = drain_node(node_id, reason, self._config.drain_timeout_s + DRAIN_SLACK_S)
            logger.info("draining node %s: %s", node_id, refusal or "accepted")

    def _replace(self, replicas: Sequence[ActualReplica], target: Target) -> None:
        """A simulated engine goes with all engines of its node, as they are one replica to Serve."""
        sick = {name.partition(".")[0] for name in target.replace}
        for replica in replicas:
            if replica.replica_id in sick and replica.state != "stopping":
                logger.info("ending replica %s of %s", replica.replica_id, replica.pool)
                end_replica(self._config.name, replica)


@contextmanager
def _cluster_answers() -> Generator[None]:
    try:
        yield
    except (RayError, TimeoutError) as error:
        raise StateError(f"the Ray cluster does not answer: {type(error).__name__}: {error}") from None
