"""Which replicas are provisioned although no router reaches them: what Serve wants, less what there is. Pure.

    wanted by Serve   |== answers ==|= starting =|= dead =|          counted in Serve's replicas, called units here
                                                                     (a unit is one replica, or a simulated node's)
A unit that was there and vanished is dead until Serve has as many as it wants again. One that drained went on
purpose. One that was never there is starting.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .ledger import Presence, ReplicaCounters
from .service_view import ReplicaView, ServiceView, yardstick_name


@dataclass(frozen=True, slots=True)
class PoolTarget:
    """What is wanted of one pool.

    Attributes:
        num_wanted: units.
        num_starting: of these, those whose start has begun and not ended.
    """

    model: str
    accelerator: str
    tp: int
    num_wanted: int
    num_starting: int


@dataclass(frozen=True, slots=True)
class _Seen:
    unit: str
    node: str
    left: bool


class Roster:
    """Remembers replicas that were there."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, _Seen]] = {}

    def absent(self, view: ServiceView, targets: Mapping[str, PoolTarget]) -> dict[str, list[ReplicaCounters]]:
        """By model, the replicas that `view` lacks. Pools without a target have none."""
        alive: dict[str, dict[str, _Seen]] = {pool: {} for pool in targets}
        for replica in view.replicas.values():
            if replica.alive and replica.address.pool in alive:
                alive[replica.address.pool][replica.address.replica_id] = _seen(replica)
        absent: dict[str, list[ReplicaCounters]] = {}
        for pool, target in targets.items():
            known = self._seen.setdefault(pool, {})
            known.update(alive[pool])
            absent.setdefault(target.model, []).extend(self._absent_of(pool, target, known, alive[pool]))
        return absent

    def _absent_of(
        self, pool: str, target: PoolTarget, known: dict[str, _Seen], alive: Mapping[str, _Seen]
    ) -> Iterable[ReplicaCounters]:
        units = {seen.unit for seen in alive.values()}
        num_missing = max(0, target.num_wanted - len(units))
        # The latest to come are the last; those that were replaced or went on purpose are not missed.
        lost = list(dict.fromkeys(seen.unit for seen in known.values() if seen.unit not in units and not seen.left))
        missed = lost[len(lost) - min(num_missing, len(lost)) :]
        for name, seen in list(known.items()):
            if seen.unit not in units and seen.unit not in missed:
                del known[name]
        new = [f"{pool}/{index}" for index in range(num_missing - len(missed))]
        starting = {*new, *missed[: max(0, target.num_starting - len(new))]}
        for name, seen in known.items():
            if name not in alive and not seen.left:
                yield _counters(
                    name, seen.node, pool, target, Presence.STARTING if seen.unit in starting else Presence.DEAD
                )
        for unit in new:
            for index in range(_typical_size(known.values())):
                yield _counters(f"{unit}.{index}", "-", pool, target, Presence.STARTING)


def _seen(replica: ReplicaView) -> _Seen:
    address = replica.address
    is_simulated = address.engine == "simulated"
    unit = address.replica_id.rpartition(".")[0] if is_simulated else address.replica_id
    return _Seen(unit, replica.node, left=replica.presence is Presence.DRAINING)


def _typical_size(known: Iterable[_Seen]) -> int:
    """Replicas in the largest unit seen; one before any was."""
    sizes: dict[str, int] = {}
    for seen in known:
        sizes[seen.unit] = sizes.get(seen.unit, 0) + 1
    return max(sizes.values(), default=1)


def _counters(name: str, node: str, pool: str, target: PoolTarget, presence: Presence) -> ReplicaCounters:
    return ReplicaCounters(
        replica=name,
        node=node,
        pool=pool,
        yardstick=yardstick_name(target.accelerator, target.tp),
        presence=presence,
    )
