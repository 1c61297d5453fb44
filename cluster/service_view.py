"""The service as all its routers together see it at one moment. Pure: router snapshots in, one view out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..deployments.addresses import ReplicaAddress
from ..deployments.router_state import ReplicaState
from ..deployments.router_stats import ReplicaSnapshot, RouterSnapshot
from ..deployments.wire import ReplicaStatus
from .ledger import ModelCounters, Presence, ReplicaCounters

# Without a word for so long, a replica does nothing that anyone could account for.
SILENT_S = 10.0


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica.

    Attributes:
        node: name of its node.
        state: as the router with the freshest news says (`ready`, `draining`, `lost`, ...).
        alive: some router gets answers from it.
        num_in_flight: requests that it holds, as the router says that knows of most.
        status: the freshest that it sent to any router, None before the first.
        status_age_s: seconds since then.
        in_flight_s: request-seconds that all routers had bound to it when that status came.
    """

    address: ReplicaAddress
    node: str
    state: str
    alive: bool
    num_in_flight: int
    status: ReplicaStatus | None
    status_age_s: float = 0.0
    in_flight_s: float = 0.0

    @property
    def yardstick(self) -> str:
        return yardstick_name(self.address.accelerator, self.address.tp)

    @property
    def presence(self) -> Presence:
        if self.alive and self.status_age_s <= SILENT_S:
            return Presence.DRAINING if self.state == ReplicaState.DRAINING else Presence.SERVING
        return Presence.STARTING if self.state == ReplicaState.CONNECTING else Presence.DEAD


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model: requests that wait in routers; and of those that had to go on at another replica, the tokens so
    far and those that were still expected."""

    num_queued: int
    num_continued_tokens: int = 0
    num_continued_left: float = 0.0


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
            others = models.get(model.model, ModelView(0))
            models[model.model] = ModelView(
                others.num_queued + model.num_queued,
                others.num_continued_tokens + model.num_continued_tokens,
                others.num_continued_left + model.num_continued_left,
            )
    return ServiceView({name: _merge_replica(views, node_names) for name, views in seen.items()}, models)


def _merge_replica(views: list[tuple[float, ReplicaSnapshot]], node_names: Mapping[str, str]) -> ReplicaView:
    told = [view for view in views if view[1].status is not None] or views
    newest_life = max(replica.address.started_at for _, replica in told)
    told_at, freshest = max(
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
        status_age_s=freshest.status_age_s,
        # Routers had their last word from it at different moments.
        in_flight_s=sum(
            replica.in_flight_s + replica.num_in_flight * (told_at - at)
            for at, replica in told
            if replica.address.started_at == newest_life
        ),
    )


def model_counters(
    view: ServiceView, model: str, time_s: float, absent: Sequence[ReplicaCounters] | None = None
) -> ModelCounters:
    """What the ledger of `model` needs from `view`: its replicas, but not those that have not told anything yet.

    Args:
        absent: those of its provisioned replicas that do not answer; None takes those that routers have lost.
    """
    seen = view.models.get(model, ModelView(0))
    told = [
        _replica_counters(replica, replica.status)
        for replica in view.replicas.values()
        if replica.address.model == model and replica.status is not None and (replica.alive or absent is None)
    ]
    return ModelCounters(
        time_s=time_s,
        num_queued=seen.num_queued,
        num_continued_tokens=seen.num_continued_tokens,
        num_continued_left=seen.num_continued_left,
        replicas=(*told, *(absent or ())),
    )


def _replica_counters(replica: ReplicaView, status: ReplicaStatus) -> ReplicaCounters:
    return ReplicaCounters(
        replica=replica.address.replica_id,
        node=replica.node,
        pool=replica.address.pool,
        yardstick=replica.yardstick,
        presence=replica.presence,
        service_s=status.idle_s + status.busy_s + status.overhead_s,
        idle_s=status.idle_s,
        output_tokens=status.stats.total_output_tokens,
        num_in_flight=replica.num_in_flight,
        num_waiting=status.stats.num_waiting,
        steps=status.steps,
        in_flight_s=replica.in_flight_s,
    )
