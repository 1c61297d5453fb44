"""How many nodes of which type one model is to have. Pure; the order of the questions is the policy:

can it be placed at all? ── is anything known of nodes? ── can the SLO be kept by any number of them?
  ── is there more work than nodes? add ── is the SLO missed? add one ── would fewer do, for long? remove ── hold
"""

from dataclasses import replace

from .actuation import NodeState
from .decision import Action, Cause, Verdict
from .growing import add, add_for_slo, attained, slo_missed
from .outlook import Outlook, pool_of
from .shrinking import at_rest, enough_without, one_less, remove
from .snapshot import ModelMemory, Snapshot
from .verdicts import hold, verdict

MAX_PATIENCE = 8.0
# A pool that has been starting for so many times its usual time cannot be placed.
FAR_TOO_LONG = 3.0


def decide_model(snapshot: Snapshot, model: str, outlook: Outlook) -> tuple[Verdict, ModelMemory]:
    """The verdict, and what is to be remembered of it."""
    decided = _decide(snapshot, model, outlook)
    return decided, _remember(outlook, decided)


def _decide(snapshot: Snapshot, model: str, o: Outlook) -> Verdict:
    hopeless = _unplaceable(snapshot, model, o) or _unknown(model, o) or _slo_unreachable(model, o)
    if hopeless is not None:
        return hopeless
    short = o.demand.planned - o.capacity(o.have)
    if o.total < o.settings.min_nodes:
        return add(model, o, max(short, 0.0), Cause.BOUNDS)
    if short > 0.0:
        decided = add(model, o, short, Cause.WORK)
        return add_for_slo(model, o) if decided.cause is Cause.FLOOR and slo_missed(o) else decided
    if slo_missed(o):
        return add_for_slo(model, o)
    if o.total > o.settings.max_nodes or enough_without(o, one_less(o)):
        return remove(model, o)
    return hold(model, o, *at_rest(o))


def _unplaceable(snapshot: Snapshot, model: str, o: Outlook) -> Verdict | None:
    if not snapshot.actual.node_types:
        return hold(model, o, Cause.FIXED, "no autoscaler runs on this cluster, so nodes are as they are")
    if not o.offers:
        misfits = (
            "; ".join(offer.misfit for offer in snapshot.offers.get(model, ())) or "its pools have no node type"
        )
        return hold(model, o, Cause.UNPLACEABLE, f"its replicas fit on no type of node: {misfits}")
    for offer in o.offers.values():
        pool = pool_of(snapshot, offer.pool)
        long_s = FAR_TOO_LONG * o.load_s[offer.pool]
        num_long_ready = sum(
            node.node_type == offer.node_type
            and node.state is NodeState.READY
            and snapshot.time_s - node.since_s > long_s
            for node in snapshot.actual.nodes
        )
        if pool and pool.starting and pool.running < num_long_ready * offer.num_replicas / 2:
            why = f": {pool.reason}" if pool.reason else ""
            text = f"{pool.starting} replicas of {pool.pool} have been starting for over {long_s:.0f} s{why}"
            return hold(model, o, Cause.UNPLACEABLE, text + "; more nodes would not change that")
    return None


def _unknown(model: str, o: Outlook) -> Verdict | None:
    """Without any baseline: what must be, and one node for the first work."""
    if any(offer.tokens_per_s for offer in o.offers.values()):
        return None
    wanted = max(o.settings.min_nodes, 1 if o.load.num_queued or o.demand.now > 0.0 else 0)
    kind = next((kind for kind in o.offers if o.room.get(kind, 0) > 0), None)
    if o.total < wanted and kind is not None:
        after = {**o.have, kind: o.have.get(kind, 0) + min(wanted - o.total, o.room[kind])}
        return verdict(
            model, o, Action.ADD, Cause.NO_BASELINE, after, "the first nodes; no baseline says yet what they bring"
        )
    text = "no baseline says what a node brings; `nfold baseline` measures one"
    return hold(model, o, Cause.NO_BASELINE, text)


def _slo_unreachable(model: str, o: Outlook) -> Verdict | None:
    known = [kind for kind, offer in o.offers.items() if offer.tokens_per_s]
    if any(o.usable[kind].tokens_per_s for kind in known):
        return None
    return hold(model, o, Cause.SLO_UNREACHABLE, _too_slow(o, known) + "; no number of nodes changes that")


def _too_slow(o: Outlook, kinds: list[str]) -> str:
    slo, parts = o.settings.slo, list[str]()
    for kind in kinds:
        first_s, steps = o.offers[kind].first_token_s, o.offers[kind].step_times
        if slo.ttft_s is not None and first_s is not None and first_s > slo.ttft_s:
            parts.append(f"{kind} needs {first_s:.3g} s for a first token, {slo.ttft_s:.3g} s are promised")
        elif slo.tpot_s is not None and steps:
            parts.append(
                f"{kind} needs {steps[0].step_s:.3g} s per token with {steps[0].batch:.0f} requests in a step, "
                f"{slo.tpot_s:.3g} s are promised"
            )
    return "; ".join(parts)


def _remember(o: Outlook, decided: Verdict) -> ModelMemory:
    memory = replace(o.memory, nodes=decided.after)
    if decided.action is Action.REMOVE:
        calm = o.time_s - memory.added_s > 6 * o.idle_s
        return replace(
            memory, removed_s=o.time_s, patience=max(1.0, memory.patience / 2) if calm else memory.patience
        )
    if decided.action is Action.ADD:
        first = memory.added_s <= memory.removed_s
        regretted = first and o.time_s - memory.removed_s < 2 * o.idle_s
        patience = min(MAX_PATIENCE, 2 * memory.patience) if regretted else memory.patience
        memory = replace(memory, added_s=o.time_s, patience=patience)
        if decided.cause is Cause.SLO:
            before = memory.slo_attained if memory.slo_tries else attained(o)
            return replace(memory, slo_tries=memory.slo_tries + 1, slo_attained=before)
    if not slo_missed(o):
        return replace(memory, missed_since_s=0.0, slo_tries=0, slo_attained=0.0)
    being_done = o.load.queued_tokens > 0.0 and o.demand.backlog_tokens == 0.0
    return replace(memory, missed_since_s=0.0 if being_done else memory.missed_since_s or o.time_s)
