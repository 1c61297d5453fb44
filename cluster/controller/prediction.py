"""What so many nodes will bring, from baselines, the ledger's latest saturated windows, and nothing else. Pure.

    tokens/s at saturation  =  baseline of all nodes x (typical share + slope x nodes more than were seen)
                             - what some nodes lose more than is typical, which does not grow with the others

New nodes are taken to be as the one in the middle is, not as the mean: what a straggler loses is lost once, however
many join. What grows with the number of nodes (imbalance, control plane) is learnt from windows with different
numbers of nodes; from few of them little is concluded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high

from .settings import SloSettings
from .snapshot import NodeOutput, Offer, Seen, Window

NO_DEMAND = "no demand"
# Losses of single nodes, which say nothing of others, in the order in which more than typical is looked for.
OF_SOME_NODES = ("unhealthy", "slow step", "underfilled", "recompute", "unexplained", "starved", "control plane")
# Losses that may grow with the number of nodes.
OF_THE_NUMBER = ("starved", "underfilled", "control plane", "unexplained")
# Nodes squared: windows whose numbers of nodes differ by less than this tell little of a slope.
SLOPE_HOLD = 4.0
# Losses of a change, not of a number of nodes.
PASSING = ("starting", "draining")
MAX_PASSING_SHARE = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a number of nodes is to bring.

    Attributes:
        baseline: sum of what is provisioned, tokens/s.
        efficiency: at saturation.
        tokens_per_s: that will be generated, if as much is asked for as expected.
        losses: of the baseline, by ledger column, tokens/s; what is left is `tokens_per_s`.
    """

    num_nodes: int
    baseline: float
    efficiency: float
    tokens_per_s: float
    losses: Mapping[str, float]

    @property
    def capacity(self) -> float:
        """Tokens/s at saturation."""
        return self.baseline * self.efficiency


def see(time_s: float, window: Window | None, nodes: Sequence[NodeOutput]) -> Seen | None:
    """What a window teaches; None when it was not saturated, or nodes came or went."""
    if window is None or not nodes or (efficiency := window.efficiency) is None:
        return None
    if sum(window.losses.get(column, 0.0) for column in PASSING) > MAX_PASSING_SHARE * window.baseline:
        return None
    shares = [node.measured / node.baseline for node in nodes if node.baseline > 0.0]
    return Seen(
        time_s=time_s,
        num_nodes=len(nodes),
        baseline=window.baseline,
        efficiency=efficiency,
        typical=max(efficiency, median_high(shares)) if shares else efficiency,
        losses={column: loss / window.baseline for column, loss in window.losses.items()},
    )


def predict(
    offers: Mapping[str, Offer],
    nodes: Mapping[str, int],
    seen: Mapping[int, Seen],
    wanted: float | None = None,
    missing: float = 0.0,
) -> Prediction:
    """What `nodes` will bring.

    Args:
        offers: by node type; types without a baseline bring nothing that could be predicted.
        nodes: by node type.
        seen: the latest saturated window of each number of nodes.
        wanted: tokens/s that will be asked for; None is more than they can do.
        missing: tokens/s of the baseline that nodes lack whose accelerators do not all work.
    """
    whole = sum((offers[kind].tokens_per_s or 0.0) * count for kind, count in nodes.items() if kind in offers)
    baseline = max(0.0, whole - missing)
    num_nodes = sum(nodes.values())
    shares = _loss_shares(num_nodes, baseline, seen)
    losses = {column: share * baseline for column, share in shares.items() if share != 0.0}
    capacity = max(0.0, baseline - sum(losses.values()))
    tokens_per_s = capacity if wanted is None else min(capacity, wanted)
    if tokens_per_s < capacity:
        losses[NO_DEMAND] = losses.get(NO_DEMAND, 0.0) + capacity - tokens_per_s
    return Prediction(
        num_nodes=num_nodes,
        baseline=baseline,
        efficiency=capacity / baseline if baseline > 0.0 else 0.0,
        tokens_per_s=tokens_per_s,
        losses=losses,
    )


def _loss_shares(num_nodes: int, baseline: float, seen: Mapping[int, Seen]) -> dict[str, float]:
    """By column, of the baseline of so many nodes at saturation."""
    if not seen or baseline <= 0.0:
        return {}
    latest = max(seen.values(), key=lambda one: one.time_s)
    typical, extra = _split(latest)
    # Who has more than is typical stays when nodes come; of those that go, he may be one.
    kept = min(1.0, num_nodes / latest.num_nodes) * latest.baseline / baseline
    steps = num_nodes - latest.num_nodes
    shares: dict[str, float] = {}
    for column in latest.losses:
        share = typical.get(column, 0.0) + extra.get(column, 0.0) * kept
        if column in OF_THE_NUMBER:
            share += steps * _slope(column, seen)
        shares[column] = share
    return shares


def _split(seen: Seen) -> tuple[dict[str, float], dict[str, float]]:
    """Loss shares that all nodes have, and those that only some have: together those of `seen`."""
    typical, extra = dict(seen.losses), dict[str, float]()
    rest = seen.typical - seen.efficiency
    for column in OF_SOME_NODES:
        taken = min(rest, max(0.0, typical.get(column, 0.0)))
        if taken > 0.0:
            typical[column] -= taken
            extra[column] = taken
            rest -= taken
    return typical, extra


def loss_per_node(seen: Mapping[int, Seen]) -> float:
    """Share of its baseline that each node loses for every node more, as far as was seen."""
    return sum(_slope(column, seen) for column in OF_THE_NUMBER)


def _slope(column: str, seen: Mapping[int, Seen]) -> float:
    """Change of a column's typical share per node more, held to 0 by `SLOPE_HOLD`."""
    points = [(one.num_nodes, _split(one)[0].get(column, 0.0)) for one in seen.values()]
    mean_n = sum(n for n, _ in points) / len(points)
    mean_share = sum(share for _, share in points) / len(points)
    covariance = sum((n - mean_n) * (share - mean_share) for n, share in points)
    return covariance / (sum((n - mean_n) ** 2 for n, _ in points) + SLOPE_HOLD)


def usable_share(offer: Offer, slo: SloSettings) -> float:
    """Of an offer's tokens/s at saturation, what is left when steps must be as short as the SLO wants; 0 when even
    one request alone is too slow, so that no number of such nodes would do."""
    if slo.ttft_s is not None and offer.first_token_s is not None and offer.first_token_s > slo.ttft_s:
        return 0.0
    if slo.tpot_s is None or not offer.step_times:
        return 1.0
    full_s = _step_s(offer, offer.full_batch)
    if full_s <= slo.tpot_s:
        return 1.0
    if _step_s(offer, 1.0) > slo.tpot_s:
        return 0.0
    low, high = 1.0, offer.full_batch
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if _step_s(offer, middle) <= slo.tpot_s else (low, middle)
    return (low / slo.tpot_s) / (offer.full_batch / full_s)


def _step_s(offer: Offer, batch: float) -> float:
    """On the straight lines between the curve's points, and on the outer ones beyond them."""
    points = offer.step_times
    if len(points) == 1:
        return points[0].step_s
    index = next((i for i in range(1, len(points) - 1) if batch <= points[i].batch), len(points) - 1)
    before, after = points[index - 1], points[index]
    slope = (after.step_s - before.step_s) / (after.batch - before.batch)
    return max(0.0, before.step_s + slope * (batch - before.batch))
