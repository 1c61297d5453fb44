"""Broken set-ups: `nfold why` names the cause, the figures, and what would resolve it."""

from collections.abc import Mapping, Sequence

import pytest
from nfold.cluster.controller.actuation import Actual, ActualNode, ActualPool, NodeState, NodeType, Target
from nfold.cluster.controller.decision import Action, Cause, Decision, Verdict
from nfold.cluster.controller.misfits import Room
from nfold.cluster.controller.why import Finding, Observed, Start, explain
from nfold.deployments.config import PoolConfig

MI355X, MI300X = "AMD-Instinct-MI355X-OAM", "AMD-Instinct-MI300X-OAM"
POOL = "llama--mi355x"


def resources(gpus: float, accelerator: str = MI355X) -> dict[str, float]:
    return {"CPU": 128.0, "GPU": gpus, f"accelerator_type:{accelerator}": 1.0}


def room(name: str, gpus: float = 8.0, free: float | None = None, accelerator: str = MI355X) -> Room:
    total = resources(gpus, accelerator)
    return Room(name, total, {**total, "GPU": gpus if free is None else free})


def kind(name: str = "mi355x", gpus: float = 8.0, max_nodes: int = 4, accelerator: str = MI355X) -> NodeType:
    return NodeType(
        name=name,
        resources=resources(gpus, accelerator),
        accelerator=accelerator,
        num_accelerators=int(gpus),
        max_nodes=max_nodes,
    )


def node(number: int, state: NodeState = NodeState.READY, reason: str = "", since_s: float = 900.0) -> ActualNode:
    return ActualNode(
        node_id=f"n{number}", node_type="mi355x", state=state, since_s=since_s, reason=reason, num_accelerators=8
    )


def observed(
    rooms: Sequence[Room],
    *,
    tp: int = 8,
    wanted: int = 2,
    running: int = 1,
    types: Sequence[NodeType] = (),
    nodes: Sequence[ActualNode] = (),
    **others: object,
) -> Observed:
    pool = ActualPool(pool=POOL, wanted=wanted, starting=wanted - running, running=running, draining=0)
    return Observed(
        pools={POOL: PoolConfig(accelerator=MI355X, tp=tp)},
        models={POOL: "llama"},
        actual=Actual(time_s=1000.0, node_types=tuple(types), nodes=tuple(nodes), pools=(pool,)),
        rooms={one.name: one for one in rooms},
        **others,  # pyright: ignore[reportArgumentType]
    )


def only(found: Sequence[Finding]) -> Finding:
    (finding,) = found
    return finding


def test_a_bundle_too_large_for_every_node() -> None:
    finding = only(explain(observed([room("a", 4.0), room("b", 4.0)], types=[kind("small", 4.0)])))

    assert finding.subject == f"{POOL}: 1 of 2 replicas pending; each needs 8 bundles {{GPU: 1}} on one node"
    assert "a, b each has 4 GPU in all, 4 too few" in finding.cause
    assert "No type of node would hold it either: a node of small has 4 GPU in all, 4 too few" in finding.cause
    assert "smaller tp" in finding.remedy


def test_another_accelerator() -> None:
    rooms = [room(f"n{i}", accelerator=MI300X) for i in range(5)]
    finding = only(explain(observed(rooms)))

    assert f"n0, n1 and 3 others each has {MI300X}, not {MI355X}" in finding.cause
    assert "No autoscaler runs" in finding.cause


def test_enough_in_all_but_on_no_one_node() -> None:
    finding = only(explain(observed([room("a", free=5.0), room("b", free=3.0)])))

    assert "a has 5 of 8 GPU free, 3 too few; b has 3 of 8 GPU free, 5 too few" in finding.cause
    assert "the 8 GPU that are free in all lie on several nodes" in finding.cause
    assert "free one" in finding.remedy


def test_the_type_of_node_is_at_its_bound() -> None:
    found = observed([room("a", free=0.0)], types=[kind(max_nodes=1)], nodes=[node(0)])
    finding = only(explain(found))

    assert "a has 0 of 8 GPU free, 8 too few" in finding.cause
    assert "mi355x has its 1" in finding.cause
    assert finding.remedy == "raise max_nodes of that type of node"


def test_the_model_is_at_its_bound() -> None:
    found = observed([room("a", free=0.0)], types=[kind()], nodes=[node(0)], max_nodes={"llama": 1})

    assert "llama may have 1 nodes" in only(explain(found)).cause
    assert "controller.models.llama.max_nodes" in only(explain(found)).remedy


def test_a_node_that_nobody_asked_for() -> None:
    found = [room("a", free=0.0)]
    by_hand = only(explain(observed(found, types=[kind()], nodes=[node(0)])))
    assert "A node of mi355x would hold it, and none was asked for" in by_hand.cause
    assert "nfold scale llama --nodes" in by_hand.remedy

    decided = verdict(Cause.ENOUGH, "10 tokens/s are asked for")
    told = only(explain(observed(found, types=[kind()], nodes=[node(0)], decision=decided)))
    assert told.cause.endswith("none was asked for: 10 tokens/s are asked for")


def test_nodes_that_fail_are_told_with_the_providers_words() -> None:
    failed = [node(i, NodeState.FAILED, "ssh: connect to host 10.0.0.7: No route to host") for i in (1, 2)]
    first, second = explain(observed([room("a", free=0.0)], types=[kind()], nodes=[node(0), *failed]))

    assert first.subject == "2 nodes of type mi355x failed"
    assert "No route to host" in first.cause
    assert POOL in second.subject


def test_replicas_that_fail_when_they_start() -> None:
    start = Start(pool=POOL, node="a", phase="loading", error="/models/llama holds no *.safetensors")
    finding = only(explain(observed([room("a")], starts=[start])))

    assert "fail when they start on a: /models/llama holds no *.safetensors" in finding.cause


def test_what_comes_or_loads_is_waited_for() -> None:
    loading = Start(pool=POOL, node="a", phase="loading")
    assert only(explain(observed([room("a", free=0.0)], starts=[loading]))).cause == "they are loading"

    coming = observed([room("a", free=0.0)], types=[kind()], nodes=[node(1, NodeState.STARTING, since_s=940.0)])
    finding = only(explain(coming))
    assert "1 of mi355x are coming, asked for 60 s ago" in finding.cause
    assert finding.remedy == "wait"


def verdict(cause: Cause, reason: str) -> Decision:
    nodes: Mapping[str, int] = {"mi355x": 2}
    told = Verdict(model="llama", action=Action.HOLD, cause=cause, before=nodes, after=nodes, reason=reason)
    target = Target(decision=7, nodes=nodes, replicas={POOL: 2})
    return Decision(number=7, time_s=990.0, verdicts=(told,), health=(), target=target)


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        (Cause.FLOOR, "controller.models.llama.min_marginal_efficiency"),
        (Cause.SLO_UNREACHABLE, "controller.models.llama.slo"),
        (Cause.NO_BASELINE, "nfold baseline"),
    ],
)
def test_the_latest_decision_is_told(cause: Cause, remedy: str) -> None:
    found = observed([room("a")], running=2, decision=verdict(cause, "50 tokens/s are asked for"))
    finding = only(explain(found))

    assert finding.subject == "llama does not scale"
    assert finding.cause == "50 tokens/s are asked for"
    assert remedy in finding.remedy


def test_a_controller_that_is_silent_or_off() -> None:
    silent = only(explain(observed([room("a")], running=2, decision_age_s=300.0)))
    off = only(explain(observed([room("a")], running=2, enabled=False)))

    assert "300 s ago" in silent.cause
    assert "controller.enabled" in off.cause


def test_nothing_is_said_when_all_is_well() -> None:
    found = observed([room("a")], running=2, decision=verdict(Cause.ENOUGH, "enough"), decision_age_s=3.0)

    assert explain(found) == []
