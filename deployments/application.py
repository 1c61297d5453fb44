"""The one place where a service is put together: pools and gateways become one Serve application.

Import this only where `ray_environment` is in the environment: Ray Serve reads it when it is imported.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve._private.common import DeploymentID
from ray.serve.api import RunTarget
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from ..models.config import ModelConfig
from ..models.errors import ConfigError, StateError
from . import discovery
from .config import PoolConfig, ServedModelConfig, ServiceConfig, pool_name
from .devices import ray_options
from .gateway import GATEWAYS, Gateway
from .nodes import alive_nodes
from .placement import CPU, GPU, PLACEMENT_STRATEGY, NodeResources, bundles, check_fit
from .replica import PoolReplica
from .replica_spec import ReplicaSpec
from .simulated_config import SIMULATED_PREFIX

# Serve's own queues stay out of the way: the router holds the one that counts.
UNLIMITED = 1_000_000
HEALTH_CHECK_PERIOD_S = 2.0
CONTROL_TIMEOUT_S = 30.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """What is started, and what `readiness.wait_ready` waits for.

    Attributes:
        num_replicas: by pool.
        num_gateways: of all machines.
        ingress_everywhere: each node has an ingress of its own; else the head alone, because nodes share a machine.
    """

    num_replicas: Mapping[str, int]
    num_gateways: int
    ingress_everywhere: bool


def plan_service(config: ServiceConfig, nodes: Sequence[NodeResources]) -> ServicePlan:
    """Check everything that can be known before anything starts.

    Raises:
        CheckpointError: a model's directory is missing, or its config.json is wrong.
        ConfigError: `tp` does not divide a model, or `max_model_len` exceeds it.
        PlacementError: a pool does not fit the nodes.
    """
    for index, model in enumerate(config.models):
        if model.simulated is None:  # else the config was all there is to check
            _check_model(f"models[{index}]", model)
    num_machines = len({node.address for node in nodes})
    num_gateways = num_machines * config.http.gateways
    return ServicePlan(check_fit(config.pools, nodes), num_gateways, num_machines == len(nodes))


def build_application(config: ServiceConfig, plan: ServicePlan) -> serve.Application:
    """The Serve application: gateways as the ingress, one deployment per pool."""
    pools = [
        serve.deployment(
            name=name,
            num_replicas=plan.num_replicas[name],
            placement_group_bundles=bundles(pool),
            placement_group_strategy=PLACEMENT_STRATEGY,
            ray_actor_options=rank_0_options(pool),
            max_ongoing_requests=UNLIMITED,
            health_check_period_s=HEALTH_CHECK_PERIOD_S,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=config.drain_timeout_s + 10,
            max_constructor_retry_count=3,
        )(PoolReplica).bind(
            ReplicaSpec(
                service=config.name,
                model=model,
                pool=pool,
                pool_name=name,
                drain_timeout_s=config.drain_timeout_s,
                accounts_steps=config.metrics.enabled,
            )
        )
        for model in config.models
        for pool in model.pools
        for name in [pool_name(model.name, pool)]
    ]
    gateways = serve.deployment(
        name=GATEWAYS,
        num_replicas=plan.num_gateways,
        max_replicas_per_node=config.http.gateways,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=UNLIMITED,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=config.drain_timeout_s + 10,
    )(Gateway)
    return gateways.bind(config, *pools)


def deploy(config: ServiceConfig) -> ServicePlan:
    """Start the service on the connected cluster. Returns at once; `readiness.wait_ready` waits.

    Raises:
        StateError: it is running. See also `plan_service`.
    """
    if config.name in serve.status().applications:
        raise StateError(f"service {config.name!r} is running; scale it, or take it down first")
    plan = plan_service(config, alive_nodes())
    discovery.clear(config.name)
    http = {"host": config.http.host, "port": config.http.port}
    serve.start(proxy_location="EveryNode" if plan.ingress_everywhere else "HeadOnly", http_options=http)
    target = RunTarget(build_application(config, plan), config.name, "/", external_scaler_enabled=True)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    return plan


def scale_pool(service: str, pool: str, num_replicas: int) -> None:
    """Change how many replicas a pool has; the others keep running, those that go finish what they have.

    Raises:
        StateError: no such service or pool is running.
    """
    _scale(service, pool, num_replicas)


def scale_gateways(service: str, num_gateways: int) -> None:
    """After machines came or went. Raises StateError."""
    _scale(service, GATEWAYS, num_gateways)


def take_down(service: str, timeout_s: float = 60.0) -> None:
    """Drain and end all replicas and gateways; the cluster stays. Does nothing if it is not running.

    Raises:
        StateError: not all have ended after `timeout_s`; they go on ending.
    """
    give_up_at = time.monotonic() + timeout_s
    if service in serve.status().applications:
        serve.delete(service, _blocking=False)
    while service in serve.status().applications:
        if time.monotonic() > give_up_at:
            raise StateError(f"service {service!r} is still draining after {timeout_s:g} s")
        time.sleep(POLL_S)
    discovery.clear(service)


def _scale(service: str, deployment: str, num_replicas: int) -> None:
    application = serve.status().applications.get(service)
    if application is None or application.status == ApplicationStatus.DELETING:
        raise StateError(f"service {service!r} is not running")
    if deployment not in application.deployments:
        raise StateError(f"service {service!r} has no {deployment!r}; it has {', '.join(application.deployments)}")
    client = _get_global_client()
    assert client is not None, "serve.status() connected"
    # What the REST call of Serve's external scaling does, without the dashboard that a local cluster may not have.
    ray.get(
        client._controller.update_deployment_replicas.remote(DeploymentID(deployment, service), num_replicas),
        timeout=CONTROL_TIMEOUT_S,
    )


def rank_0_options(pool: PoolConfig) -> dict[str, Any]:
    """Rank 0 is Serve's own actor and takes what bundle 0 has."""
    first = bundles(pool)[0]
    resources = {name: amount for name, amount in first.items() if name.startswith(SIMULATED_PREFIX)}
    bundle = {"num_cpus": first.get(CPU, 0), "num_gpus": first.get(GPU, 0), "resources": resources}
    return bundle | ray_options(pool)


def _check_model(field: str, model: ServedModelConfig) -> None:
    from ..models.layers.attention import HeadSplit  # imports torch, which a driver needs for this only
    from ..models.parallel import TpGroup

    config = ModelConfig.from_directory(model.directory)
    longest, wanted = config.max_position_embeddings, model.engine.max_model_len
    if wanted is not None and wanted > longest:
        raise ConfigError(f"{field}.engine.max_model_len", wanted, f"must not exceed the model's {longest}")
    for index, pool in enumerate(model.pools):
        try:
            HeadSplit.of(config, TpGroup(0, pool.tp, None, None))
        except ConfigError as error:
            raise ConfigError(f"{field}.pools[{index}].{error.field}", error.value, error.expected) from None
