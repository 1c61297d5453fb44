"""What tokens cost: parts that sum to the price of all nodes, each model by what it fills of them."""

import pytest
from nfold.cluster.controller.actuation import Actual, ActualNode, ActualReplica, NodeState
from nfold.cluster.controller.costs import Cost, cost_of, costs_of, in_words, price_per_hour
from nfold.cluster.controller.settings import ControllerSettings, PriceSettings
from nfold.cluster.controller.snapshot import Load, Offer, Snapshot, Window

HALF_IDLE = Window(window_s=60.0, baseline=1000.0, measured=500.0, losses={"no demand": 500.0}, saturated=False)


def node(name: str, state: NodeState = NodeState.READY, kind: str = "n") -> ActualNode:
    return ActualNode(node_id=name, node_type=kind, state=state, since_s=0.0)


def test_costs_sum_to_the_price_of_all_nodes() -> None:
    nodes = (node("0"), node("1"), node("2", NodeState.REQUESTED))
    actual = Actual(time_s=0.0, node_types=(), nodes=nodes, pools=())
    assert price_per_hour(actual, {"n": 18.0}) == 36.0
    assert price_per_hour(actual, {"other": 18.0}) is None

    window = Window(window_s=60.0, baseline=2000.0, measured=800.0, losses={"no demand": 1100.0}, saturated=False)
    cost = cost_of(36.0, window, 0.8)
    assert sum(cost.parts.values()) == cost.per_hour == pytest.approx(36.0)
    assert cost.tokens == pytest.approx(0.45 * 36.0)
    assert cost.idle == pytest.approx(0.1 * 36.0)  # 800 at 80 % need 1,000
    assert sum(cost.parts_per_million.values()) == pytest.approx(36.0 / 2.88)


def snapshot(*placed: tuple[str, str]) -> Snapshot:
    """Two nodes that eight replicas fill, with so many of them: pool and node of each."""
    replicas = tuple(
        ActualReplica(replica_id=str(i), pool=pool, node_id=on, state="running")
        for i, (pool, on) in enumerate(placed)
    )
    return Snapshot(
        time_s=7.0,
        actual=Actual(time_s=7.0, node_types=(), nodes=(node("0"), node("1")), pools=(), replicas=replicas),
        loads=(Load(model="a", window=HALF_IDLE), Load(model="b", window=HALF_IDLE), Load(model="new")),
        offers={
            model: (Offer(node_type="n", pool=model, num_replicas=8, tokens_per_s=1000.0),)
            for model in ("a", "b", "new")
        },
    )


def test_models_share_the_price_by_what_they_fill() -> None:
    settings = ControllerSettings(prices=PriceSettings(currency="EUR", node_hour={"n": 10.0}))
    costs = costs_of(snapshot(*[("a", "0")] * 6, *[("b", "0")] * 2), settings)
    assert costs is not None
    assert (costs.time_s, costs.currency) == (7.0, "EUR")
    assert {model: cost.per_hour for model, cost in costs.models.items()} == pytest.approx({"a": 15.0, "b": 5.0})
    nothing_placed = costs_of(snapshot(), settings)
    assert nothing_placed is not None
    assert nothing_placed.models["a"].per_hour == pytest.approx(20.0 / 3)


def test_without_a_price_nothing_is_said() -> None:
    assert costs_of(snapshot(("a", "0")), ControllerSettings()) is None


def test_words() -> None:
    cost = Cost(tokens=9.0, idle=3.6, over_provisioned=5.4, tokens_per_s=1000.0)
    text = in_words("m", "USD", cost.parts, cost.parts_per_million)
    assert text == (
        "m costs 18.00 USD per hour, 5.000 per million tokens: tokens 2.500, idle 1.000, over-provisioned 1.500"
    )
    nothing = Cost(tokens=0.0, idle=0.0, over_provisioned=18.0, tokens_per_s=0.0)
    assert in_words("m", "USD", nothing.parts, nothing.parts_per_million).endswith("and brings no tokens")
