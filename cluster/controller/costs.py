"""What tokens cost where nodes have prices, with what is paid for idle nodes apart. Pure.

price of all nodes  =  tokens            what they work on, their losses included
                    +  idle              headroom that the utilisation aimed at needs for the load there is
                    +  over-provisioned  the rest of what is lost for want of demand
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .actuation import Actual, NodeState
from .prediction import NO_DEMAND
from .snapshot import Window

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
    def per_hour(self) -> float:
        return self.tokens + self.idle + self.over_provisioned

    def per_million(self, part: float) -> float | None:
        """Of the cost or a part of it, per million output tokens; None when there were none."""
        return part / (self.tokens_per_s * 3600.0 / 1e6) if self.tokens_per_s > 0.0 else None


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
