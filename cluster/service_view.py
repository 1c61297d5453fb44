"""The service as all its routers together see it at one moment. Pure: router snapshots in, one view out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..deployments.addresses import ReplicaAddress
from ..deployments.router_stats import ReplicaSnapshot, RouterSnapshot
from ..deployments.wire import ReplicaStatus
from .ledger import ModelCounters, ReplicaCounters


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica.

    Attributes:
        node: name of its node.
        state: as the router with the freshest news says (`ready`, `draining`, `lost`, ...).
        alive: some router gets answers from it.
        num_in_flight: requests that it holds, as the router says that knows of most.
        status: the freshest that it sent to any router, None before the first.
    """

    address: ReplicaAddress
    node: str
    state: str
    alive: bool
    num_in_flight: int
    status: ReplicaStatus | None

    @property
    def yardstick(self) -> str:
        return yardstick_name(self.address.accelerator, self.address.tp)


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model: requests that wait in routers."""

    num_queued: int


@dataclass(frozen=True, slots=True)
class ServiceView:
    """Replicas by id, models by name."""

    replicas: Mapping[str, ReplicaView]
    models: Mapping[str, ModelView]


def yardstick_name(accelerator: str, tp: int) -> str:
    """What replicas of this kind are measured by."""
    return f"{accelerator}/tp{tp}"


def merge(snapshots: Sequence[RouterSnapshot], node_names: Mapping[str, str]) -> ServiceView:
    """One view out of one snapshot per router. A node without a name goes by its id."""
    seen: dict[str, list[tuple[float, ReplicaSnapshot]]] = {}
    models: dict[str, ModelView] = {}
    for snapshot in snapshots:
        for replica in snapshot.replicas:
            told_at = snapshot.taken_at - replica.status_age_s
            seen.setdefault(replica.address.replica_id, []).append((told_at, replica))
        for model in snapshot.models:
            others = models[model.model].num_queued if model.model in models else 0
            models[model.model] = ModelView(others + model.num_queued)
    return ServiceView({name: _merge_replica(views, node_names) for name, views in seen.items()}, models)


def _merge_replica(views: list[tuple[float, ReplicaSnapshot]], node_names: Mapping[str, str]) -> ReplicaView:
    told = [view for view in views if view[1].status is not None] or views
    newest_life = max(replica.address.started_at for _, replica in told)
    _, freshest = max(
        (view for view in told if view[1].address.started_at == newest_life),
        key=lambda view: (view[1].alive, view[0]),
    )
    node_id = freshest.address.node_id
    return ReplicaView(
        address=freshest.address,
        node=node_names.get(node_id, node_id),
        state=freshest.state,
        alive=any(replica.alive for _, replica in views),
        num_in_flight=max(replica.num_in_flight + replica.num_in_flight_others for _, replica in views),
        status=freshest.status,
    )


def model_counters(view: ServiceView, model: str, time_s: float) -> ModelCounters:
    """What the ledger of `model` needs from `view`: its living replicas that have told their status."""
    return ModelCounters(
        time_s=time_s,
        num_queued=view.models[model].num_queued if model in view.models else 0,
        replicas=tuple(
            _replica_counters(replica, replica.status)
            for replica in view.replicas.values()
            if replica.address.model == model and replica.alive and replica.status is not None
        ),
    )


def _replica_counters(replica: ReplicaView, status: ReplicaStatus) -> ReplicaCounters:
    return ReplicaCounters(
        replica=replica.address.replica_id,
        node=replica.node,
        yardstick=replica.yardstick,
        service_s=status.idle_s + status.busy_s + status.overhead_s,
        idle_s=status.idle_s,
        overhead_s=status.overhead_s,
        output_tokens=status.stats.total_output_tokens,
        num_in_flight=replica.num_in_flight,
        num_waiting=status.stats.num_waiting,
    )
