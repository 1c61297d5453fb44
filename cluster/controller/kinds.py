"""Which kind of node to add or give back: by tokens/s, and where prices are set, by what they cost. Pure."""

import math
from collections.abc import Mapping


def cover(
    deficit: float, brings: Mapping[str, float], room: Mapping[str, int], prices: Mapping[str, float]
) -> dict[str, int]:
    """The cheapest nodes that bring `deficit` tokens/s, or all there are, if they do not.

    Without prices the fewest. Of equally cheap ones, those that bring more.

    Args:
        deficit: tokens/s.
        brings: tokens/s of one node, by type.
        room: how many more of each type there may be.
        prices: of one node per hour, by type; those of types without one are taken to be like the dearest.
    """
    usable = {kind: rate for kind, rate in brings.items() if rate > 0.0 and room.get(kind, 0) > 0}
    plans = [
        _filled(deficit, [kind, *_by_unit_price(usable, prices, without=kind)], usable, room) for kind in usable
    ]
    plans.append(_filled(deficit, _by_unit_price(usable, prices), usable, room))
    return min(plans, key=lambda plan: _rank(plan, deficit, usable, prices))


def _filled(
    deficit: float, order: list[str], brings: Mapping[str, float], room: Mapping[str, int]
) -> dict[str, int]:
    """As many of the first as are needed or there are, the rest of the next."""
    plan: dict[str, int] = {}
    for kind in order:
        count = min(room[kind], math.ceil(deficit / brings[kind] - 1e-9))
        if count > 0:
            plan[kind] = count
            deficit -= count * brings[kind]
    return plan


def _rank(
    plan: Mapping[str, int], deficit: float, brings: Mapping[str, float], prices: Mapping[str, float]
) -> tuple[float, float, float]:
    brought = sum(brings[kind] * count for kind, count in plan.items())
    return max(0.0, deficit - brought), sum(price_of(kind, prices) * n for kind, n in plan.items()), -brought


def _by_unit_price(brings: Mapping[str, float], prices: Mapping[str, float], without: str = "") -> list[str]:
    """Cheapest tokens first."""
    return sorted(
        (kind for kind in brings if kind != without), key=lambda kind: price_of(kind, prices) / brings[kind]
    )


def price_of(kind: str, prices: Mapping[str, float]) -> float:
    """Of a node per hour; 1 for each where there are no prices."""
    return prices.get(kind, max(prices.values(), default=1.0))


def worst(
    brings: Mapping[str, float], nodes: Mapping[str, int], least: Mapping[str, int], prices: Mapping[str, float]
) -> list[str]:
    """Types of which there are more than the `least`, those whose tokens cost most first."""
    there = [kind for kind, count in nodes.items() if count > least.get(kind, 0)]
    return sorted(there, key=lambda kind: price_of(kind, prices) / max(brings.get(kind, 0.0), 1e-9), reverse=True)
