"""Why a replica does not fit on nodes: on which, of what, by how much. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...deployments.config import PoolConfig
from ...deployments.placement import bundles

CRUMB = 0.01  # less of a resource is a mark, not an amount
ROUNDING = 1e-6
TYPE = "accelerator_type:"
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Room:
    """A node, or a type of node, that might hold a replica.

    Attributes:
        total, free: by resource; equal for a node that is empty or only thought of.
    """

    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]


def needs(pool: PoolConfig) -> dict[str, float]:
    """All bundles of a replica together: they stay on one node."""
    total: dict[str, float] = {}
    for bundle in bundles(pool):
        for resource, amount in bundle.items():
            total[resource] = total.get(resource, 0.0) + amount
    return total


def needs_in_words(pool: PoolConfig) -> str:
    bundle = bundles(pool)[0]
    shape = ", ".join(f"{resource}: {amount:g}" for resource, amount in bundle.items() if amount >= CRUMB)
    return f"one bundle {{{shape}}}" if pool.tp == 1 else f"{pool.tp} bundles {{{shape}}} on one node"


def fits(needed: Mapping[str, float], room: Room) -> bool:
    """In what is free."""
    return all(room.free.get(resource, 0.0) >= amount - ROUNDING for resource, amount in needed.items())


def fits_empty(needed: Mapping[str, float], room: Room) -> bool:
    """If nothing else were there."""
    return all(room.total.get(resource, 0.0) >= amount - ROUNDING for resource, amount in needed.items())


def misfit(needed: Mapping[str, float], room: Room) -> str:
    """Why it does not fit there; empty if it does."""
    for resource, amount in needed.items():
        total, free = room.total.get(resource, 0.0), room.free.get(resource, 0.0)
        if free >= amount - ROUNDING:
            continue
        if resource.startswith(TYPE):
            has = [name.removeprefix(TYPE) for name in room.total if name.startswith(TYPE)]
            return f"has {', '.join(has) or 'accelerators of no known type'}, not {resource.removeprefix(TYPE)}"
        if total < ROUNDING:
            return f"has no {resource}"
        if total < amount - ROUNDING:
            return f"has {total:g} {resource} in all, {amount - total:g} too few"
        return f"has {free:g} of {total:g} {resource} free, {amount - free:g} too few"
    return ""


def misfits(needed: Mapping[str, float], rooms: Iterable[Room]) -> str:
    """Of all rooms, those alike said together."""
    names: dict[str, list[str]] = {}
    for room in rooms:
        if reason := misfit(needed, room):
            names.setdefault(reason, []).append(room.name)
    return "; ".join(f"{_list(alike)} {reason}" for reason, alike in names.items()) or "there is no node"


def _list(names: Sequence[str]) -> str:
    if len(names) <= SHOWN:
        return ", ".join(names) + (" each" if len(names) > 1 else "")
    return f"{', '.join(names[: SHOWN - 1])} and {len(names) - SHOWN + 1} others each"
