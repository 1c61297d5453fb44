"""Why replicas lacked work: each empty slot, and with it the time lost for want of a full batch, has one reason.

    empty slots of a replica  | prompts |== own ==|= on the way =|=== elsewhere ===|.... nothing ....|
                                        underfilled control plane       starved         no demand

Slots whose requests' prompts are computed are not empty; if these are all, the replica itself is the reason. Each
kind of work fills as many of the others as there are requests of it, in this order: those in its own queue that it
has no room for; those on their way to it or, ended, on their way back; those that wait elsewhere, in routers or at
replicas that are full. So one request that waits somewhere does not make a whole cluster starved.
"""

from collections.abc import Mapping

from .counters import Presence
from .split import Parts

_WHOLE = {Presence.DRAINING: {"draining": 1.0}, Presence.QUARANTINED: {"unhealthy": 1.0}}


def lacking_shares(
    parts: Mapping[str, Parts], presence: Mapping[str, Presence], num_queued: float
) -> dict[str, dict[str, float]]:
    """By replica, the shares of its `lacking_s` by column, which sum to 1.

    Args:
        parts: of one model's replicas, over one short stretch of time.
        presence: of the same.
        num_queued: requests that waited in routers, mean.
    """
    serving = {name: part for name, part in parts.items() if presence[name] is Presence.SERVING}
    fills = {name: _near_fill(part) for name, part in serving.items()}
    num_free, num_waiting = 0.0, num_queued
    for name, part in serving.items():
        own, on_the_way = fills[name]
        num_free += _slots(part) * (1.0 - own - on_the_way)
        num_waiting += max(0.0, part.waiting - own * _slots(part))
    elsewhere = min(1.0, num_waiting / num_free) if num_free > 0.0 else 0.0
    # Requests that wait while no replica has any are not the replicas' matter.
    reason = "starved" if any(part.held > 0.0 for part in serving.values()) else "control plane"
    shares: dict[str, dict[str, float]] = {}
    for name in parts:
        if name not in serving:
            shares[name] = _WHOLE[presence[name]]
            continue
        own, on_the_way = fills[name]
        rest = 1.0 - own - on_the_way
        shares[name] = {"underfilled": own, "control plane": on_the_way, "starved": 0.0}
        shares[name][reason] += rest * elsewhere
        shares[name]["no demand"] = rest * (1.0 - elsewhere)
    return shares


def _near_fill(part: Parts) -> tuple[float, float]:
    """Of the empty slots, those that its own queue fills and those that what is on the way does.

    A batch above the baseline's that costs time all the same is none of the others' fault either.
    """
    slots = _slots(part)
    if slots <= 0.0 or part.lacking_s <= 0.0:
        return 1.0, 0.0
    own = min(1.0, part.own / slots)
    return own, min(1.0 - own, part.on_the_way / slots)


def _slots(part: Parts) -> float:
    """Empty, and no prompts are computed for them."""
    return max(0.0, part.empty_slots - part.pending)
