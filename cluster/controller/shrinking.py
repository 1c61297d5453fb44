"""Fewer nodes: how many would do, whether for long enough, and which go. Pure."""

from collections.abc import Mapping

from .decision import Action, Cause, Verdict
from .kinds import worst
from .outlook import Outlook
from .verdicts import verdict
from .wording import growth, idle, nodes_of, tokens, waiting


def one_less(o: Outlook) -> dict[str, int]:
    brings = {kind: offer.tokens_per_s or 0.0 for kind, offer in o.usable.items()}
    order = worst(brings, o.have, o.least, o.prices)
    return {**o.have, order[0]: o.have[order[0]] - 1} if order else dict(o.have)


def _fits(o: Outlook, nodes: Mapping[str, int]) -> bool:
    """All that is asked for, and all requests that are there: clients that wait for answers ask for little."""
    measured = o.load.window.measured if o.load.window else 0.0
    needed = max(o.demand.peak, measured) / o.settings.keep_utilisation
    return max(needed, o.demand.planned) <= o.capacity(nodes) and _has_room(o, nodes)


def _has_room(o: Outlook, nodes: Mapping[str, int]) -> bool:
    """For all requests that are there, queued ones too, in batches as full as the baseline's; true without one."""
    known = [(o.offers[kind], count) for kind, count in nodes.items() if kind in o.offers]
    if any(offer.tokens_per_s is None for offer, _ in known):
        return True
    full = sum(count * offer.num_engines * offer.full_batch for offer, count in known)
    return o.load.num_in_flight + o.load.num_queued <= full


def enough_without(o: Outlook, nodes: Mapping[str, int]) -> bool:
    """Fewer nodes would do and would have done for long enough, as far as anybody looked."""
    if sum(nodes.values()) >= o.total or sum(nodes.values()) < o.settings.min_nodes or not _fits(o, nodes):
        return False
    return not _cooling(o)


def _cooling(o: Outlook) -> str:
    """Why nothing is given back now; empty when it may be."""
    now, since = o.time_s, o.time_s - o.idle_s
    looked = [sample.time_s for sample in o.memory.demand if sample.time_s >= since]
    if not o.settled:
        return waiting(o)
    if o.memory.added_s > since:
        return f"nodes were added {now - o.memory.added_s:.0f} s ago"
    if o.memory.removed_s > now - o.idle_s / 4:
        return f"nodes were removed {now - o.memory.removed_s:.0f} s ago"
    gaps = [after - before for before, after in zip([since, *looked], [*looked, now], strict=True)]
    if max(gaps) > max(120.0, o.idle_s / 5):
        return f"nobody looked for {max(gaps):.0f} s of the last {o.idle_s:.0f} s"
    return ""


def remove(model: str, o: Outlook) -> Verdict:
    """As many as all fits without, a quarter of the nodes at a time."""
    brings = {kind: offer.tokens_per_s or 0.0 for kind, offer in o.usable.items()}
    after, most = dict(o.have), max(1, o.total // 4)
    for _ in range(most):
        order = worst(brings, after, o.least, o.prices)
        fewer = {**after, order[0]: after[order[0]] - 1} if order else after
        over = sum(after.values()) > o.settings.max_nodes
        if sum(fewer.values()) < o.settings.min_nodes or not (over or _fits(o, fewer)):
            break
        after = fewer
    after = {kind: count for kind, count in after.items() if count}
    text = f"{idle(o)}; {nodes_of(o.have)} become {nodes_of(after)}"
    cause = Cause.BOUNDS if o.total > o.settings.max_nodes else Cause.IDLE
    return verdict(model, o, Action.REMOVE, cause, after, text)


def at_rest(o: Outlook) -> tuple[Cause, str]:
    if not o.settled:
        return Cause.STARTING, waiting(o)
    fewer = one_less(o)
    is_less = o.settings.min_nodes <= sum(fewer.values()) < o.total
    if is_less and _fits(o, fewer):
        return Cause.COOLING, f"{nodes_of(fewer)} would do; {_cooling(o)}"
    text = f"{growth(o)}; {nodes_of(o.have)} bring {tokens(o.capacity(o.have))}"
    if is_less and not _has_room(o, fewer):
        text += f"; {o.load.num_in_flight + o.load.num_queued:,} requests are there, too many for {nodes_of(fewer)}"
    return Cause.ENOUGH, text
