"""How long nodes take to come and models to load, learnt from watching counts. Pure.

asked for ──provision──> ready ──load──> serves        nodes are alike: who was asked for first came first
"""

from collections.abc import Mapping, Sequence

from .actuation import Actual, NodeState
from .snapshot import Offer, StartTimes

# Weight of the newest of several measurements.
NEWEST = 0.4


def watch(
    times: StartTimes, actual: Actual, offers: Sequence[Offer], wanted: Mapping[str, int], time_s: float
) -> StartTimes:
    """What this look teaches.

    Args:
        offers: of all models.
        wanted: by node type, how many there are to be: what is more than is there counts as asked for now.
    """
    provision_s, asked_s = dict(times.provision_s), dict[str, tuple[float, ...]]()
    load_s, ready_s = dict(times.load_s), dict[str, tuple[float, ...]]()
    num_ready = {kind.name: actual.count(kind.name, NodeState.READY) for kind in actual.node_types}
    num_running = {pool.pool: pool.running for pool in actual.pools}
    came: dict[str, int] = {}
    for kind, count in num_ready.items():
        came[kind] = max(0, count - times.num_ready.get(kind, count))
        asked = list(times.asked_s.get(kind, ()))
        for since_s in asked[: came[kind]]:
            provision_s[kind] = _mean(provision_s.get(kind), time_s - since_s)
        open_asks = max(0, wanted.get(kind, 0) - count)
        asked = asked[came[kind] :][:open_asks]
        asked_s[kind] = (*asked, *[time_s] * (open_asks - len(asked)))
    for offer in offers:
        running = num_running.get(offer.pool, 0)
        served = max(0, running - times.num_running.get(offer.pool, running)) // max(1, offer.num_replicas)
        ready = [*times.ready_s.get(offer.pool, ()), *[time_s] * came.get(offer.node_type, 0)]
        for since_s in ready[:served]:
            load_s[offer.pool] = _mean(load_s.get(offer.pool), time_s - since_s)
        still = max(0, wanted.get(offer.node_type, 0) * offer.num_replicas - running)
        ready_s[offer.pool] = tuple(ready[served:][: still // max(1, offer.num_replicas)])
    return StartTimes(
        provision_s=provision_s,
        load_s=load_s,
        asked_s=asked_s,
        ready_s=ready_s,
        num_ready=num_ready,
        num_running=num_running,
    )


def _mean(before_s: float | None, measured_s: float) -> float:
    return measured_s if before_s is None else before_s + NEWEST * (measured_s - before_s)
