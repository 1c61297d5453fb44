"""The controller's latest decision and what tokens cost then, kept in the cluster for whoever asks.

Needs a connected process.
"""

import msgspec

from ...deployments import discovery
from .costs import Costs
from .decision import Decision

_KEY = "controller/latest"
_COSTS = "controller/costs"


def publish_latest(service: str, decision: Decision) -> None:
    discovery.put_value(service, _KEY, msgspec.json.encode(decision))


def latest(service: str) -> Decision | None:
    """None when there is none, or it is another version's."""
    value = discovery.get_value(service, _KEY)
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=Decision)
    except msgspec.MsgspecError:
        return None


def publish_costs(service: str, costs: Costs) -> None:
    discovery.put_value(service, _COSTS, msgspec.json.encode(costs))


def latest_costs(service: str) -> Costs | None:
    """None when there are none, or they are another version's."""
    value = discovery.get_value(service, _COSTS)
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=Costs)
    except msgspec.MsgspecError:
        return None
