"""More nodes: for the work there is, or because the SLO is missed; how many, of which type, or why not. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from .decision import Action, Cause, Verdict
from .kinds import cover
from .outlook import Outlook
from .prediction import NO_DEMAND, loss_per_node
from .verdicts import hold, verdict
from .wording import growth, nodes_of, waiting

# More nodes are tried for the SLO's sake only while nodes are used by so much at least.
MIN_USE_FOR_SLO = 0.3
# And only so often without the attainment rising by so much.
MAX_SLO_TRIES = 2
HELPED = 0.02
# What is missed for less time is not worth a node.
MISSED_FOR_S = 120.0
# Where each node more was seen to cost the others so much of their baselines, no more than twice as many nodes as
# were seen are believed in.
FELT = 0.005


@dataclass(frozen=True, slots=True)
class _Grown:
    """Nodes by type, and what the next one would have brought, had it not been under the floor."""

    nodes: Mapping[str, int]
    marginal: float | None = None
    eaten_by: str = ""


def attained(o: Outlook) -> float:
    """Share of requests within the SLO: of its two promises, the one kept worse; 1 where nothing is known. Where no
    request ended of late, how long those that wait have waited tells."""
    slo, load = o.settings.slo, o.load
    if slo.ttft_s is not None and load.ttft_attained is None and load.queue_age_s > slo.ttft_s:
        return 0.0
    shares = ((slo.ttft_s, load.ttft_attained), (slo.tpot_s, load.tpot_attained))
    return min([1.0, *(share for promised, share in shares if promised is not None and share is not None)])


def slo_missed(o: Outlook) -> bool:
    return attained(o) < o.settings.slo.attainment


def add_for_slo(model: str, o: Outlook) -> Verdict:
    """One node more, unless that did not help before or cannot."""
    missed = _missed(o)
    if not o.settled or o.time_s - o.memory.added_s < o.lead_s:
        return hold(model, o, Cause.STARTING, f"{missed}; {waiting(o)}")
    capacity = o.capacity(o.have)
    used = o.demand.now / capacity if capacity > 0.0 else 0.0
    if o.load.queued_tokens > 0.0 and o.demand.backlog_tokens == 0.0 and used < 1.0:
        text = f"{missed}; what waits will be done in {o.load.queued_tokens / (capacity - o.demand.now):.0f} s"
        return hold(model, o, Cause.PASSING, f"{text}, before another node could serve")
    missed_s = o.time_s - (o.memory.missed_since_s or o.time_s)
    if missed_s < MISSED_FOR_S:
        return hold(model, o, Cause.PASSING, f"{missed}, for {missed_s:.0f} s now; that may pass")
    if used < MIN_USE_FOR_SLO:
        text = f"{missed}, though only {used:.0%} of the nodes' tokens/s are asked for; more nodes would not help"
        return hold(model, o, Cause.SLO_UNREACHABLE, text)
    if o.memory.slo_tries >= MAX_SLO_TRIES and attained(o) < o.memory.slo_attained + HELPED:
        text = f"{missed}; it was {o.memory.slo_attained:.1%} before {o.memory.slo_tries} nodes were added for it"
        return hold(model, o, Cause.SLO_UNREACHABLE, text + ", so more nodes do not help")
    return add(model, o, 1.0, Cause.SLO)


def add(model: str, o: Outlook, short: float, cause: Cause) -> Verdict:
    """The cheapest nodes that bring `short` tokens/s more and are worth it, or why there are none."""
    if o.total >= o.settings.max_nodes:
        return hold(model, o, Cause.BOUNDS, f"{growth(o)}, but max_nodes is {o.settings.max_nodes}")
    plan = _plan(o, short)
    if not plan:
        why = "; ".join(o.failing.values()) or "the cluster has no more nodes of a type that helps"
        return hold(model, o, Cause.FAILING if o.failing else Cause.BOUNDS, f"{growth(o)}, but {why}")
    grown = _grow(o, plan, forced=cause is Cause.SLO)
    if grown.nodes == o.have:
        floor = o.settings.min_marginal_efficiency
        text = (
            f"{growth(o)}; another node would bring {grown.marginal or 0.0:.0%} of its baseline, under the "
            f"floor of {floor:.0%}: `{grown.eaten_by}` would take most of the rest"
        )
        return hold(model, o, Cause.FLOOR, text, marginal=grown.marginal, eaten_by=grown.eaten_by)
    why = {
        Cause.SLO: _missed(o) if cause is Cause.SLO else "",
        Cause.BOUNDS: f"min_nodes is {o.settings.min_nodes}",
    }
    text = f"{why.get(cause, growth(o))}; {nodes_of(o.have)} become {nodes_of(grown.nodes)}"
    if o.failing:
        text += f" ({'; '.join(o.failing.values())})"
    return verdict(model, o, Action.ADD, cause, grown.nodes, text, marginal=grown.marginal, eaten_by=grown.eaten_by)


def _missed(o: Outlook) -> str:
    return f"{attained(o):.1%} of requests are within the SLO, {o.settings.slo.attainment:.1%} are promised"


def _plan(o: Outlook, short: float) -> dict[str, int]:
    """Nodes to add by type, up to `min_nodes` at least; more make up for what they lose of their baselines."""
    latest = max(o.memory.seen.values(), key=lambda one: one.time_s, default=None)
    share = max(0.1, latest.typical) if latest else 1.0
    brings = {kind: (offer.tokens_per_s or 0.0) * share for kind, offer in o.usable.items()}
    plan = cover(max(short, 1.0), brings, o.room, o.prices)
    lacking = o.settings.min_nodes - o.total - sum(plan.values())
    if plan and lacking > 0:
        first = next(iter(plan))
        plan[first] += min(lacking, o.room[first] - plan[first])
    return plan


def _grow(o: Outlook, plan: Mapping[str, int], *, forced: bool) -> _Grown:
    """Node by node of the plan, as long as each is worth it."""
    nodes, most = dict(o.have), min(o.settings.max_nodes, _believed_in(o))
    for kind in (kind for kind, count in plan.items() for _ in range(count)):
        total = sum(nodes.values())
        if total >= most:
            break
        one_more = {**nodes, kind: nodes.get(kind, 0) + 1}
        brought, column = _marginal(o, nodes, one_more, kind)
        needed = forced or total < max(1, o.settings.min_nodes)
        if brought < o.settings.min_marginal_efficiency and not needed:
            return _Grown(nodes, brought, column)
        nodes = one_more
    return _Grown(nodes)


def _believed_in(o: Outlook) -> int:
    """The most nodes of which a prediction may be trusted."""
    if not o.memory.seen or loss_per_node(o.memory.seen) < FELT:
        return o.settings.max_nodes
    return max(o.total, 2 * max(o.memory.seen))


def _marginal(o: Outlook, before: Mapping[str, int], after: Mapping[str, int], kind: str) -> tuple[float, str]:
    """Share of its baseline that one node of `kind` more would bring of what is wanted, and the column that would
    take most of the rest."""
    was, will = o.capacity(before), o.capacity(after)
    one, wanted = o.usable[kind].tokens_per_s or 0.0, o.demand.planned
    lost = {NO_DEMAND: max(0.0, will - max(was, wanted))}
    then, now = o.predict(after), o.predict(before)
    if then and now:
        for column, loss in then.losses.items():
            if column != NO_DEMAND:
                lost[column] = lost.get(column, 0.0) + loss - now.losses.get(column, 0.0)
    brought = (min(will, wanted) - min(was, wanted)) / one if one > 0.0 else 0.0
    return brought, max(lost, key=lambda column: lost[column])
