"""Two models on one type of node: each has nodes of its own, and together no more than there may be."""

from dataclasses import replace

from nfold.cluster.controller.actuation import Actual, ActualNode, ActualPool, NodeState, NodeType
from nfold.cluster.controller.decision import Action, Cause, Decision
from nfold.cluster.controller.policy import decide
from nfold.cluster.controller.settings import ControllerSettings, ScalingSettings
from nfold.cluster.controller.snapshot import Load, Memory, Offer, Snapshot

SETTINGS = ControllerSettings(models={"a": ScalingSettings(), "b": ScalingSettings()})


def offer(model: str) -> Offer:
    return Offer(node_type="n", pool=f"{model}--n", num_replicas=8, tokens_per_s=1000.0, num_engines=8)


def snapshot(max_nodes: int, **asked_for: float) -> Snapshot:
    """Each model fills one of two nodes."""
    kind = NodeType(name="n", resources={"GPU": 8.0}, accelerator="n", num_accelerators=8, max_nodes=max_nodes)
    nodes = tuple(
        ActualNode(node_id=f"n{i}", node_type="n", state=NodeState.READY, since_s=0.0, num_accelerators=8)
        for i in range(2)
    )
    pools = tuple(
        ActualPool(pool=f"{model}--n", wanted=8, starting=0, running=8, draining=0) for model in asked_for
    )
    return Snapshot(
        time_s=1e6,
        actual=Actual(time_s=1e6, node_types=(kind,), nodes=nodes, pools=pools),
        loads=tuple(Load(model=model, arriving_tokens_per_s=rate) for model, rate in asked_for.items()),
        offers={model: (offer(model),) for model in asked_for},
    )


def decided(found: Snapshot) -> Decision:
    return decide(found, SETTINGS, Memory())[0]


def test_each_model_gets_its_own_nodes() -> None:
    decision = decided(snapshot(10, a=2500.0, b=500.0))

    assert [(verdict.model, verdict.action) for verdict in decision.verdicts] == [
        ("a", Action.ADD),
        ("b", Action.HOLD),
    ]
    assert decision.target.nodes == {"n": 4}
    assert decision.target.replicas == {"a--n": 24, "b--n": 8}


def test_together_they_have_no_more_than_there_may_be() -> None:
    decision = decided(snapshot(3, a=2500.0, b=2500.0))

    assert decision.target.nodes == {"n": 3}
    assert decision.target.replicas == {"a--n": 16, "b--n": 8}
    assert decision.verdicts[1].cause is Cause.BOUNDS


def test_a_broken_accelerator_costs_a_replica() -> None:
    found = snapshot(10, a=500.0, b=500.0)
    whole, partial = found.actual.nodes
    nodes = (replace(partial, num_accelerators=7), whole)
    decision = decided(replace(found, actual=replace(found.actual, nodes=nodes)))

    assert sum(decision.target.replicas.values()) == 15
