"""What tokens cost where nodes have prices, with what is paid for idle nodes apart. Pure.

price of all nodes  =  tokens            what they work on, their losses included
                    +  idle              headroom that the utilisation aimed at needs for the load there is
                    +  over-provisioned  the rest of what is lost for want of demand
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .actuation import Actual, NodeState
from .prediction import NO_DEMAND
from .settings import ControllerSettings
from .snapshot import Snapshot, Window

BILLED = (NodeState.STARTING, NodeState.READY, NodeState.DRAINING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Per hour, in the prices' currency, and the tokens that came of it.

    Attributes:
        tokens_per_s: measured.
    """

    tokens: float
    idle: float
    over_provisioned: float
    tokens_per_s: float

    @property
    def parts(self) -> dict[str, float]:
        """By name; they sum to `per_hour`."""
        return {"tokens": self.tokens, "idle": self.idle, "over-provisioned": self.over_provisioned}

    @property
    def per_hour(self) -> float:
        return self.tokens + self.idle + self.over_provisioned

    @property
    def parts_per_million(self) -> dict[str, float]:
        """Per million output tokens; empty when there were none."""
        millions = self.tokens_per_s * 3600.0 / 1e6
        return {name: part / millions for name, part in self.parts.items()} if millions > 0.0 else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of all models that have baselines, at one moment (Unix time)."""

    time_s: float
    currency: str
    models: Mapping[str, Cost]


def costs_of(snapshot: Snapshot, settings: ControllerSettings) -> Costs | None:
    """None when a node that is paid for has no price."""
    prices = settings.prices
    per_hour = price_per_hour(snapshot.actual, prices.node_hour)
    if per_hour is None:
        return None
    shares = _shares(snapshot, prices.node_hour)
    models: dict[str, Cost] = {}
    for load in snapshot.loads:
        if load.window is not None:
            scaling = settings.models.get(load.model)
            utilisation = scaling.target_utilisation if scaling else 1.0
            models[load.model] = cost_of(per_hour * shares[load.model], load.window, utilisation)
    return Costs(time_s=snapshot.time_s, currency=prices.currency, models=models)


def _shares(snapshot: Snapshot, node_hour: Mapping[str, float]) -> dict[str, float]:
    """Of the price, by model: what its replicas fill of the nodes. Empty nodes are shared likewise."""
    fills = {
        (offer.node_type, offer.pool): (model, 1.0 / max(1, offer.num_replicas))
        for model, offers in snapshot.offers.items()
        for offer in offers
    }
    types = {node.node_id: node.node_type for node in snapshot.actual.nodes}
    filled = {load.model: 0.0 for load in snapshot.loads}
    for replica in snapshot.actual.replicas:
        node_type = types.get(replica.node_id, "")
        model, share = fills.get((node_type, replica.pool), ("", 0.0))
        if model in filled:
            filled[model] += share * node_hour.get(node_type, 0.0)
    whole = sum(filled.values())
    return {model: part / whole if whole > 0.0 else 1.0 / len(filled) for model, part in filled.items()}


def price_per_hour(actual: Actual, node_hour: Mapping[str, float]) -> float | None:
    """Of all nodes that are paid for; None when one of their types has no price."""
    billed = [node.node_type for node in actual.nodes if node.state in BILLED]
    if not billed or any(kind not in node_hour for kind in billed):
        return None
    return sum(node_hour[kind] for kind in billed)


def cost_of(per_hour: float, window: Window, target_utilisation: float) -> Cost:
    """Of nodes that serve one model and cost so much."""
    if window.baseline <= 0.0:
        return Cost(tokens=0.0, idle=0.0, over_provisioned=per_hour, tokens_per_s=0.0)
    unused = min(1.0, max(0.0, window.losses.get(NO_DEMAND, 0.0) / window.baseline))
    headroom = window.measured / window.baseline * (1.0 / target_utilisation - 1.0)
    idle = min(unused, headroom)
    return Cost(
        tokens=(1.0 - unused) * per_hour,
        idle=idle * per_hour,
        over_provisioned=(unused - idle) * per_hour,
        tokens_per_s=window.measured,
    )


def in_words(model: str, currency: str, per_hour: Mapping[str, float], per_million: Mapping[str, float]) -> str:
    """Of `Cost.parts` and `Cost.parts_per_million`."""
    text = f"{model} costs {sum(per_hour.values()):,.2f} {currency} per hour"
    if not per_million:
        return f"{text} and brings no tokens"
    parts = ", ".join(f"{name} {part:.3f}" for name, part in per_million.items())
    return f"{text}, {sum(per_million.values()):.3f} per million tokens: {parts}"
