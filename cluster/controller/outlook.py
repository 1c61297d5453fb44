"""One model's part of a snapshot, worked out for its policy: what nodes bring, come, and are asked for. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .actuation import ActualPool, NodeState, NodeType
from .demand import Demand, estimate
from .prediction import Prediction, predict, usable_share
from .settings import ScalingSettings
from .snapshot import Load, Memory, ModelMemory, Offer, Snapshot

# So many failures of a node type within this time, and others are asked for instead.
MANY_FAILURES = 3
FAILURES_COUNT_S = 900.0
# With what takes so long to do beside what comes, nodes will be saturated.
QUEUE_S = 60.0
# A KV cache that is taken to more than this has no room for another request.
KV_FULL = 0.95
MIN_KV_SHARE = 0.1
UNDERWAY = (NodeState.REQUESTED, NodeState.STARTING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What the policy of one model looks at.

    Attributes:
        have: by node type, how many it is to have by the decisions so far.
        offers: by node type, of which it can use a node.
        usable: the same, with the tokens/s at which the SLO is still kept.
        failing: by node type, why no more of it should be asked for.
        room: by node type, how many more there may be.
        least: by node type, how many there must be: the head, and what the provider keeps.
        load_s: by pool, from a node's coming until its replicas serve.
        lead_s: until a node that is asked for now serves.
        missing: tokens/s that its nodes lack because accelerators do not work.
        kv_share: of what nodes should bring, what they do: less than 1 while requests wait for room in the KV cache
            because contexts are longer than when the baselines were measured.
        settled: all nodes and replicas that were decided on are there, and none goes any more.
    """

    time_s: float
    settings: ScalingSettings
    load: Load
    memory: ModelMemory
    have: Mapping[str, int]
    offers: Mapping[str, Offer]
    usable: Mapping[str, Offer]
    failing: Mapping[str, str]
    room: Mapping[str, int]
    least: Mapping[str, int]
    prices: Mapping[str, float]
    load_s: Mapping[str, float]
    lead_s: float
    missing: float
    kv_share: float
    settled: bool
    demand: Demand

    @property
    def total(self) -> int:
        return sum(self.have.values())

    def capacity(self, nodes: Mapping[str, int]) -> float:
        """Tokens/s within the SLO."""
        return self.kv_share * predict(self.usable, nodes, self.memory.seen, missing=self.missing).capacity

    def predict(self, nodes: Mapping[str, int]) -> Prediction | None:
        """For the work expected; None without baselines."""
        known = [self.offers[kind] for kind, count in nodes.items() if count and kind in self.offers]
        if any(offer.tokens_per_s is None for offer in known):
            return None
        full = predict(self.offers, nodes, self.memory.seen, None, self.missing)
        spare = max(0.0, full.capacity - self.demand.expected)
        if self.demand.queue_tokens > QUEUE_S * spare:
            return full
        return predict(self.offers, nodes, self.memory.seen, self.demand.expected, self.missing)

    @property
    def idle_s(self) -> float:
        """How long load must have been low before a node is given back."""
        return self.settings.idle_before_removal_s * self.memory.patience


def look(
    snapshot: Snapshot,
    model: str,
    settings: ScalingSettings,
    memory: Memory,
    prices: Mapping[str, float],
) -> Outlook:
    """Work it out; `memory` must know the model."""
    own, load = memory.models[model], snapshot.load(model)
    offers = {offer.node_type: offer for offer in snapshot.offers.get(model, ()) if offer.num_replicas > 0}
    failing = _failing(snapshot, settings, memory)
    have = {kind: _there(snapshot, kind, n) if kind in failing else n for kind, n in own.nodes.items()}
    have = {kind: count for kind, count in have.items() if count}
    usable = {kind: _within_slo(offer, settings) for kind, offer in offers.items()}
    lead_s = min(
        (_lead_s(offer, settings, memory) for kind, offer in offers.items() if kind not in failing),
        default=settings.provision_s + settings.load_s,
    )
    missing = _missing(snapshot, have, offers)
    kv_share = _kv_share(load)
    capacity = kv_share * predict(usable, have, own.seen, missing=missing).capacity
    return Outlook(
        time_s=snapshot.time_s,
        settings=settings,
        load=load,
        memory=own,
        have=have,
        offers=offers,
        usable=usable,
        failing=failing,
        room={kind.name: 0 if kind.name in failing else _room(kind, memory) for kind in snapshot.actual.node_types},
        least={kind.name: max(kind.min_nodes, _heads(snapshot, kind)) for kind in snapshot.actual.node_types},
        prices=prices,
        load_s={offer.pool: memory.times.load_s.get(offer.pool, settings.load_s) for offer in offers.values()},
        lead_s=lead_s,
        missing=missing,
        kv_share=kv_share,
        settled=_settled(snapshot, have, offers),
        demand=estimate(
            load,
            own.demand,
            settings,
            time_s=snapshot.time_s,
            lead_s=lead_s,
            look_back_s=settings.idle_before_removal_s * own.patience,
            capacity=capacity,
        ),
    )


def _kv_share(load: Load) -> float:
    if load.kv_use < KV_FULL or not load.num_queued or load.window is None or load.window.baseline <= 0.0:
        return 1.0
    return min(1.0, max(MIN_KV_SHARE, load.window.measured / load.window.baseline))


def _within_slo(offer: Offer, settings: ScalingSettings) -> Offer:
    return replace(offer, tokens_per_s=(offer.tokens_per_s or 0.0) * usable_share(offer, settings.slo))


def _lead_s(offer: Offer, settings: ScalingSettings, memory: Memory) -> float:
    """As measured, else as configured."""
    provision_s = memory.times.provision_s.get(offer.node_type, settings.provision_s)
    return provision_s + memory.times.load_s.get(offer.pool, settings.load_s)


def _room(kind: NodeType, memory: Memory) -> int:
    taken = sum(model.nodes.get(kind.name, 0) for model in memory.models.values())
    return max(0, kind.max_nodes - taken)


def _heads(snapshot: Snapshot, kind: NodeType) -> int:
    return sum(node.is_head and node.node_type == kind.name for node in snapshot.actual.nodes)


def _there(snapshot: Snapshot, kind: str, wanted: int) -> int:
    """Of a failing type, the nodes that are there or were asked for lately."""
    return min(wanted, snapshot.actual.count(kind, NodeState.READY, NodeState.STARTING))


def _failing(snapshot: Snapshot, settings: ScalingSettings, memory: Memory) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for kind in snapshot.actual.node_types:
        failures = [
            failure
            for failure in memory.failures
            if failure.node_type == kind.name and failure.time_s > snapshot.time_s - FAILURES_COUNT_S
        ]
        late = [
            node
            for node in snapshot.actual.nodes
            if node.node_type == kind.name
            and node.state in UNDERWAY
            and snapshot.time_s - node.since_s > settings.give_up_s
        ]
        if len(failures) >= MANY_FAILURES:
            reasons[kind.name] = f"{len(failures)} nodes of {kind.name} failed, the last: {failures[-1].reason}"
        elif late:
            waited_s = max(snapshot.time_s - node.since_s for node in late)
            reasons[kind.name] = f"{len(late)} of {kind.name} asked for {waited_s:.0f} s ago have not come"
    return reasons


def _missing(snapshot: Snapshot, have: Mapping[str, int], offers: Mapping[str, Offer]) -> float:
    """Tokens/s of nodes that have fewer accelerators than their type: 7 of 8 is normal."""
    whole = {kind.name: kind.num_accelerators for kind in snapshot.actual.node_types}
    missing = 0.0
    for node in snapshot.actual.nodes:
        offer = offers.get(node.node_type)
        if offer is None or node.state is not NodeState.READY or not have.get(node.node_type):
            continue
        num, full = node.num_accelerators, whole.get(node.node_type, 0)
        if 0 < num < full:
            units = max(1, offer.num_engines)
            missing += (offer.tokens_per_s or 0.0) * (1.0 - (units * num // full) / units)
    return missing


def _settled(snapshot: Snapshot, have: Mapping[str, int], offers: Mapping[str, Offer]) -> bool:
    """All nodes and replicas that were decided on are there, and none goes any more."""
    actual = snapshot.actual
    if any(node.state in (*UNDERWAY, NodeState.DRAINING) and node.node_type in offers for node in actual.nodes):
        return False
    if any(actual.count(kind, NodeState.READY) < count for kind, count in have.items()):
        return False
    pools = {offer.pool for offer in offers.values()}
    return not any(pool.starting or pool.draining for pool in actual.pools if pool.pool in pools)


def pool_of(snapshot: Snapshot, name: str) -> ActualPool | None:
    return next((pool for pool in snapshot.actual.pools if pool.pool == name), None)
