"""Services of simulated accelerators on this machine, started as `nfold serve` starts them, for one measurement."""

import os
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from control_plane_cpu import CpuMeter
from local_service import processes_of, serving
from nfold.cluster.config import ClusterConfig, LocalClusterConfig, NfoldConfig, SimulatedNodesConfig
from nfold.cluster.run_state import RunState
from nfold.cluster.service import Progress
from nfold.cluster.speed_priors import profile_points
from nfold.deployments.addresses import ReplicaAddress, ServiceKeys
from nfold.deployments.config import EngineConfig, HttpConfig, MetricsConfig, PoolConfig, ServedModelConfig
from nfold.deployments.router import Router
from nfold.deployments.simulated_config import SimulatedConfig
from nfold.deployments.speed_prior import SpeedPrior
from nfold.models.engine.simulated.profile import StepTimeProfile, load_profile

ACCELERATORS_PER_NODE = 8
MAX_RAY_NODES = 16
MODEL = "simulated-model"
_KEEP_S = 60.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """A running service of simulated accelerators.

    Attributes:
        replicas: one per accelerator, those of one simulated node side by side.
        meter: of all its processes.
    """

    config: NfoldConfig
    replicas: list[ReplicaAddress]
    keys: ServiceKeys | None
    meter: CpuMeter

    @property
    def num_nodes(self) -> int:
        return len({node_of(replica) for replica in self.replicas})


def node_of(replica: ReplicaAddress) -> str:
    """The simulated node: its engines' names differ behind the last dot only."""
    return replica.replica_id.rpartition(".")[0]


def profile_of(replica: ReplicaAddress) -> tuple[StepTimeProfile, str]:
    """Profile and scenario of a simulated replica."""
    return load_profile(str(replica.settings["profile"])), str(replica.settings["scenario"])


def fleet_config(
    pools: Sequence[tuple[str, int]], model_profile: str, scenario: str, *, port: int, name: str = "control-plane"
) -> NfoldConfig:
    """The config of so many accelerators of each kind, eight per node; the last node has the rest.

    Args:
        pools: accelerator and how many.
        port: of the API; the metrics' is the next.
    """
    nodes: list[SimulatedNodesConfig] = []
    num_nodes = sum(-(-count // ACCELERATORS_PER_NODE) for _, count in pools)
    packed = -(-num_nodes // MAX_RAY_NODES)
    for accelerator, count in pools:
        full, rest = divmod(count, ACCELERATORS_PER_NODE)
        for num, size in ((full, ACCELERATORS_PER_NODE), (1, rest)):
            if num and size:
                nodes.append(
                    SimulatedNodesConfig(
                        accelerator=accelerator, nodes=num, accelerators=size, hosts_per_ray_node=packed
                    )
                )
    model = ServedModelConfig(
        name=MODEL,
        path="simulated",
        engine=EngineConfig(
            engine="simulated", simulated=SimulatedConfig(model_profile=model_profile, scenario=scenario)
        ),
        pools=[PoolConfig(accelerator=accelerator) for accelerator, _ in pools],
    )
    return NfoldConfig(
        name=name,
        http=HttpConfig(port=port),
        metrics=MetricsConfig(port=port + 1),
        models=[model],
        cluster=ClusterConfig(local=LocalClusterConfig(nodes=0, simulated_nodes=nodes)),
    )


@contextmanager
def start_fleet(config: NfoldConfig, progress: Progress) -> Generator[Fleet]:
    """The service, until the context ends."""
    wanted = sum(group.nodes * group.accelerators for group in _simulated_nodes(config))
    progress(f"starting {wanted} simulated accelerators")
    with serving(config, progress) as state:
        yield _fleet_of(config, state, wanted)


def _fleet_of(config: NfoldConfig, state: RunState, wanted: int) -> Fleet:
    from nfold.cluster.measuring import replicas_of
    from nfold.deployments.discovery import service_keys

    give_up_at = time.monotonic() + _KEEP_S
    while len(replicas := replicas_of(config, MODEL)) != wanted:
        if time.monotonic() > give_up_at:
            raise SystemExit(f"{len(replicas)} of {wanted} simulated accelerators are ready")
        time.sleep(0.5)
    replicas.sort(key=lambda replica: (replica.pool, node_of(replica), replica.replica_id))
    fleet = Fleet(config, replicas, service_keys(config.name), CpuMeter(processes_of(state)))
    assert fleet.meter.num_engine_processes == fleet.num_nodes, "every host of engines must be counted"
    return fleet


def _simulated_nodes(config: NfoldConfig) -> list[SimulatedNodesConfig]:
    local = config.cluster.local
    return [] if local is None else local.simulated_nodes


@contextmanager
def open_router(
    fleet: Fleet, replicas: Sequence[ReplicaAddress] | None = None, *, finite_batch: bool = False
) -> Generator[Router]:
    """A router of this process on these replicas; None means all. `finite_batch`: see `RouterSettings`."""
    from nfold.cluster.measure import measuring_router

    chosen = fleet.replicas if replicas is None else replicas
    priors = {each.accelerator: _prior(each) for each in chosen}
    with measuring_router(
        chosen, fleet.keys, timeout_s=60.0, finite_batch=finite_batch, priors=list(priors.values())
    ) as router:
        yield router


def _prior(replica: ReplicaAddress) -> SpeedPrior:
    """As routers have it from `nfold baseline`."""
    points = profile_points(*profile_of(replica))
    return SpeedPrior(model=replica.model, accelerator=replica.accelerator, tp=replica.tp, points=points)


def num_cores() -> int:
    """Of this machine, which router, engines and Ray share."""
    return len(os.sched_getaffinity(0))
