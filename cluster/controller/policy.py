"""The controller's mind: (snapshot, settings, memory) -> (decision, memory). Pure: of the same, the same."""

from dataclasses import replace

from .actuation import NodeState, Target
from .decision import Decision, Verdict
from .demand import remember
from .health import decide_health
from .outlook import look
from .prediction import see
from .scaling_policy import decide_model
from .settings import ControllerSettings
from .snapshot import Memory, ModelMemory, NodeFailure, Offer, Snapshot
from .start_times import watch

KEEP_FAILURES_S = 3600.0
# Windows of so many numbers of nodes are remembered, the latest.
KEEP_SEEN = 24


def decide(snapshot: Snapshot, settings: ControllerSettings, memory: Memory) -> tuple[Decision, Memory]:
    """What should be from now on, why, and what it will bring."""
    memory = _take_in(snapshot, settings, memory)
    verdicts: list[Verdict] = []
    for model, scaling in settings.models.items():
        outlook = look(snapshot, model, scaling, memory, settings.prices.node_hour)
        verdict, own = decide_model(snapshot, model, outlook)
        memory = replace(memory, models={**memory.models, model: own})
        verdicts.append(verdict)
    health, memory = decide_health(snapshot.replicas, settings.health, memory, snapshot.time_s)
    memory = replace(memory, decision=memory.decision + 1)
    decision = Decision(
        number=memory.decision,
        time_s=snapshot.time_s,
        verdicts=tuple(verdicts),
        health=health,
        target=_target(snapshot, memory),
        quarantined=tuple(quarantine.replica_id for quarantine in memory.quarantine),
    )
    return decision, memory


def _take_in(snapshot: Snapshot, settings: ControllerSettings, memory: Memory) -> Memory:
    """What this look teaches, before anything is decided."""
    models = {
        model: _learn(snapshot, model, memory.models.get(model) or _first_sight(snapshot, model))
        for model in settings.models
    }
    memory = replace(memory, models=models, failures=_failures(snapshot, memory))
    offers = [offer for model in models for offer in snapshot.offers.get(model, ())]
    times = watch(memory.times, snapshot.actual, offers, _nodes(memory), snapshot.time_s)
    return replace(memory, times=times)


def _learn(snapshot: Snapshot, model: str, memory: ModelMemory) -> ModelMemory:
    load = snapshot.load(model)
    memory = remember(memory, load, snapshot.time_s)
    seen = see(snapshot.time_s, load.window, load.nodes)
    if seen is None:
        return memory
    latest = sorted({**memory.seen, seen.num_nodes: seen}.values(), key=lambda one: one.time_s)[-KEEP_SEEN:]
    return replace(memory, seen={one.num_nodes: one for one in latest})


def _first_sight(snapshot: Snapshot, model: str) -> ModelMemory:
    """Nothing is remembered of it: what it has is what it is to have."""
    return ModelMemory(nodes=_nodes_held(snapshot, model))


def _nodes_held(snapshot: Snapshot, model: str) -> dict[str, int]:
    wanted = {pool.pool: pool.wanted for pool in snapshot.actual.pools}
    held: dict[str, int] = {}
    for offer in snapshot.offers.get(model, ()):
        there = snapshot.actual.count(offer.node_type, *_STANDING)
        needed = -(-wanted.get(offer.pool, 0) // offer.num_replicas) if offer.num_replicas else 0
        if count := min(there, needed):
            held[offer.node_type] = count
    return held


_STANDING = (NodeState.READY, NodeState.STARTING, NodeState.REQUESTED)


def _failures(snapshot: Snapshot, memory: Memory) -> tuple[NodeFailure, ...]:
    known = {failure.node_id for failure in memory.failures}
    fresh = [
        NodeFailure(
            node_id=node.node_id, node_type=node.node_type, time_s=snapshot.time_s, reason=node.reason or "unknown"
        )
        for node in snapshot.actual.nodes
        if node.state is NodeState.FAILED and node.node_id not in known
    ]
    kept = [failure for failure in memory.failures if failure.time_s > snapshot.time_s - KEEP_FAILURES_S]
    return (*kept, *fresh)


def _nodes(memory: Memory) -> dict[str, int]:
    """By type, what all models together are to have."""
    nodes: dict[str, int] = {}
    for model in memory.models.values():
        for kind, count in model.nodes.items():
            nodes[kind] = nodes.get(kind, 0) + count
    return nodes


def _target(snapshot: Snapshot, memory: Memory) -> Target:
    types = [kind.name for kind in snapshot.actual.node_types]
    nodes = _nodes(memory)
    used = {offer.node_type for model in memory.models for offer in snapshot.offers.get(model, ())}
    return Target(
        decision=memory.decision,
        nodes={kind: nodes.get(kind, 0) for kind in types if kind in used} if types else {},
        replicas=_replicas(snapshot, memory) if types else {},
        leaving=memory.leaving,
        replace=tuple(quarantine.replica_id for quarantine in memory.quarantine if quarantine.replaced),
    )


def _replicas(snapshot: Snapshot, memory: Memory) -> dict[str, int]:
    """By pool: all nodes of its model filled, those with broken accelerators as far as they go."""
    replicas: dict[str, int] = {}
    whole = {kind.name: kind.num_accelerators for kind in snapshot.actual.node_types}
    taken: dict[str, int] = {}
    for model, own in memory.models.items():
        for offer in snapshot.offers.get(model, ()):
            kind, count = offer.node_type, own.nodes.get(offer.node_type, 0)
            ready = sorted(
                node.num_accelerators or whole.get(kind, 0)
                for node in snapshot.actual.nodes
                if node.node_type == kind and node.state is NodeState.READY and node.node_id not in memory.leaving
            )
            mine = ready[taken.get(kind, 0) :][:count]
            taken[kind] = taken.get(kind, 0) + count
            filled = sum(_replicas_on(offer, num, whole.get(kind, 0)) for num in mine)
            replicas[offer.pool] = replicas.get(offer.pool, 0) + filled + offer.num_replicas * (count - len(mine))
    return replicas


def _replicas_on(offer: Offer, num_accelerators: int, whole: int) -> int:
    """Of an offer, on a node that has so many of its accelerators. One process that carries all of them is one."""
    if num_accelerators >= whole or offer.num_engines != offer.num_replicas:
        return offer.num_replicas
    return offer.num_replicas * num_accelerators // whole
