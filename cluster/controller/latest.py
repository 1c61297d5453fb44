"""The controller's latest decision and what tokens cost then, kept in the cluster for whoever asks.

Needs a connected process.
"""

from typing import TypeVar

import msgspec

from ...deployments import discovery
from .costs import Costs
from .decision import Decision

Kept = TypeVar("Kept")

_KEY = "controller/latest"
_COSTS = "controller/costs"


def publish_latest(service: str, decision: Decision) -> None:
    discovery.put_value(service, _KEY, msgspec.json.encode(decision))


def latest(service: str) -> Decision | None:
    """None when there is none, or it is another version's."""
    return _read(service, _KEY, Decision)


def publish_costs(service: str, costs: Costs) -> None:
    discovery.put_value(service, _COSTS, msgspec.json.encode(costs))


def latest_costs(service: str) -> Costs | None:
    """None when there are none, or they are another version's."""
    return _read(service, _COSTS, Costs)


def _read(service: str, key: str, kind: type[Kept]) -> Kept | None:
    value = discovery.get_value(service, key)
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=kind)
    except msgspec.MsgspecError:
        return None
