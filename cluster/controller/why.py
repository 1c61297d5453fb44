"""Why something is pending or did not scale, in plain words. Pure: what was observed in, findings out.

For each pool that lacks replicas the first of these that holds is the cause:

    its replicas fail when they start ── they fit on a node now: they load, or wait their turn ── what is there is
    taken or too small ── and of the types of node that would hold them: none / they come / all at their bound
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...deployments.config import PoolConfig
from .actuation import Actual, ActualNode, ActualPool, NodeState, NodeType
from .decision import Action, Cause, Decision, Verdict
from .misfits import Room, fits, fits_empty, misfits, needs, needs_in_words

SILENT_S = 60.0
# What resolves a verdict that holds against what is wanted.
REMEDIES = {
    Cause.FLOOR: "lower controller.models.{model}.min_marginal_efficiency, or see to what the column says",
    Cause.BOUNDS: "raise controller.models.{model}.max_nodes, or the cluster's",
    Cause.FAILING: "mend the type of node that fails, or offer another",
    Cause.SLO_UNREACHABLE: "promise less in controller.models.{model}.slo, or take faster accelerators",
    Cause.UNPLACEABLE: "see to its pools; more nodes do not help",
    Cause.NO_BASELINE: "measure one with `nfold baseline`",
    Cause.FIXED: "start nodes by hand",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How far a replica's start is. `error` ended it."""

    pool: str
    node: str
    phase: str
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """All that the answer depends on.

    Attributes:
        pools: of the service, by name.
        models: the model of each pool.
        rooms: of nodes on which Ray places, by node id.
        names: of nodes, for people, by node id.
        starts: of replicas that are not ready.
        decision: the controller's latest; None when it has made none.
        decision_age_s: since its latest look; None without a controller.
        enabled: the service runs a controller.
        max_nodes: by model, what the YAML allows.
    """

    pools: Mapping[str, PoolConfig]
    models: Mapping[str, str]
    actual: Actual
    rooms: Mapping[str, Room]
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    starts: Sequence[Start] = ()
    decision: Decision | None = None
    decision_age_s: float | None = None
    enabled: bool = True
    max_nodes: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as wanted.

    Attributes:
        subject: what it is about.
        cause: why, with figures.
        remedy: what would resolve it.
    """

    subject: str
    cause: str
    remedy: str


def explain(observed: Observed) -> list[Finding]:
    """What is not as wanted, the causes of others first; empty when all is."""
    findings = [*_failed_nodes(observed), *_controller(observed)]
    for pool in observed.actual.pools:
        lacking = max(pool.starting, pool.wanted - pool.running)
        if lacking > 0:
            findings.append(_pool(observed, pool, lacking))
    for verdict in observed.decision.verdicts if observed.decision else ():
        findings += _verdict(verdict)
    return findings


def _failed_nodes(observed: Observed) -> list[Finding]:
    reasons: dict[tuple[str, str], list[ActualNode]] = {}
    for node in observed.actual.nodes:
        if node.state is NodeState.FAILED:
            reasons.setdefault((node.node_type, node.reason), []).append(node)
    return [
        Finding(
            subject=f"{len(nodes)} node{'s' * (len(nodes) > 1)} of type {kind} failed",
            cause=reason or "the provider gives no reason",
            remedy=f"mend that, or let the model use another type of node; {kind} is asked for again by and by",
        )
        for (kind, reason), nodes in reasons.items()
    ]


def _controller(observed: Observed) -> list[Finding]:
    if not observed.enabled:
        text = "`controller.enabled` is not set in the YAML, so only `nfold scale` changes the number of nodes"
        return [Finding(subject="nothing scales by itself", cause=text, remedy="set it and serve anew")]
    if observed.decision_age_s is not None and observed.decision_age_s > SILENT_S:
        return [
            Finding(
                subject="the controller is silent",
                cause=f"its latest look was {observed.decision_age_s:.0f} s ago; serving goes on without it",
                remedy="Serve starts it anew; its log, on the head, tells what keeps it",
            )
        ]
    return []


def _pool(observed: Observed, pool: ActualPool, lacking: int) -> Finding:
    config = observed.pools[pool.pool]
    needed = needs(config)
    subject = f"{pool.pool}: {lacking} of {pool.wanted} replicas pending; each needs {needs_in_words(config)}"
    errors = [start for start in observed.starts if start.pool == pool.pool and start.error]
    if errors:
        where = f" on {errors[-1].node}" if errors[-1].node else ""
        cause = f"replicas fail when they start{where}: {errors[-1].error}"
        return Finding(subject=subject, cause=cause, remedy="mend that; Serve tries again, or serve anew")
    free = [name for name, room in observed.rooms.items() if fits(needed, room)]
    phases = sorted({start.phase for start in observed.starts if start.pool == pool.pool})
    if phases or free:
        where = ", ".join(observed.names.get(node, node) for node in free[:3])
        cause = (
            f"they are {', '.join(phases)}" if phases else f"there is room on {where}; Ray has not placed them yet"
        )
        return Finding(subject=subject, cause=cause, remedy="wait; nothing is in the way")
    cause = misfits(needed, observed.rooms.values())
    if any(fits_empty(needed, room) for room in observed.rooms.values()):
        total = {name: sum(room.free.get(name, 0.0) for room in observed.rooms.values()) for name in needed}
        if all(total[name] >= amount for name, amount in needed.items()):
            name = next(iter(needed))
            cause += f"; the {total[name]:g} {name} that are free in all lie on several nodes"
    more, remedy = _types(observed, pool, needed)
    return Finding(subject=subject, cause=f"{cause}. {more}", remedy=remedy)


def _types(observed: Observed, pool: ActualPool, needed: Mapping[str, float]) -> tuple[str, str]:
    """Whether a node that would hold it can come, and what would resolve it."""
    types, model = observed.actual.node_types, observed.models[pool.pool]
    if not types:
        return (
            "No autoscaler runs on this cluster, so no node comes",
            "start a node that holds it, or free one: another model's replicas may be in the way",
        )
    holding = [kind for kind in types if fits_empty(needed, _room(kind))]
    if not holding:
        cause = f"No type of node would hold it either: {misfits(needed, map(_room, types))}"
        return cause, "take a smaller tp, or give the cluster a type of node that holds a replica"
    coming = [node for node in observed.actual.nodes if node.node_type in {kind.name for kind in holding}]
    coming = [node for node in coming if node.state in (NodeState.REQUESTED, NodeState.STARTING)]
    if coming:
        waited_s = observed.actual.time_s - min(node.since_s for node in coming)
        kinds = ", ".join(sorted({node.node_type for node in coming}))
        return f"{len(coming)} of {kinds} are coming, asked for {waited_s:.0f} s ago", "wait"
    full = [kind for kind in holding if _num(observed, kind) >= kind.max_nodes]
    if len(full) == len(holding):
        bounds = ", ".join(f"{kind.name} has its {kind.max_nodes}" for kind in full)
        return f"The cluster may have no more nodes that hold it: {bounds}", "raise max_nodes of that type of node"
    names = ", ".join(kind.name for kind in holding)
    most = observed.max_nodes.get(model)
    if most is not None and sum(_num(observed, kind) for kind in types) >= most:
        text = f"A node of {names} would hold it, but {model} may have {most} nodes"
        return text, f"raise controller.models.{model}.max_nodes"
    text = f"A node of {names} would hold it, and none was asked for"
    for verdict in observed.decision.verdicts if observed.decision else ():
        if verdict.model == model:
            return f"{text}: {verdict.reason}", f"see what keeps the controller from it: {verdict.cause}"
    return text, f"`nfold scale {model} --nodes NODES` asks for one"


def _verdict(verdict: Verdict) -> list[Finding]:
    """What keeps a model from scaling, by its latest verdict."""
    remedy = REMEDIES.get(verdict.cause)
    if verdict.action is not Action.HOLD or remedy is None:
        return []
    subject = f"{verdict.model} does not scale"
    return [Finding(subject=subject, cause=verdict.reason, remedy=remedy.format(model=verdict.model))]


def _num(observed: Observed, kind: NodeType) -> int:
    return observed.actual.count(kind.name, NodeState.READY, NodeState.STARTING, NodeState.REQUESTED)


def _room(kind: NodeType) -> Room:
    return Room(f"a node of {kind.name}", kind.resources, kind.resources)
