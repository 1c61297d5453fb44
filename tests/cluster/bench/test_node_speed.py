"""How fast nodes are against each other, from what their replicas told of their steps."""

import pytest
from nfold.cluster.bench.node_speed import node_speeds
from nfold.cluster.ledger import ModelCounters
from step_spans import BATCH, SteppingReplica

NODE_OF = {f"r{number}": f"node-{number}" for number in range(3)}


def run(batches: list[list[int]], slow: list[float], kinds: list[str] | None = None) -> dict[str, float]:
    """A second at each batch.

    Args:
        batches, slow, kinds: by replica.
    """
    replicas = [
        SteppingReplica(name=f"r{number}", node=f"node-{number}", yardstick=kinds[number] if kinds else "CPU")
        for number in range(len(batches))
    ]
    samples = [ModelCounters(time_s=0.0, num_queued=0, replicas=tuple(each.counters() for each in replicas))]
    for second in range(len(batches[0])):
        for replica, mine, factor in zip(replicas, batches, slow, strict=True):
            replica.work(1.0, batch=mine[second], slow=factor)
        counters = tuple(each.counters() for each in replicas)
        samples.append(ModelCounters(time_s=second + 1.0, num_queued=0, replicas=counters))
    return node_speeds(samples, NODE_OF)


def test_a_slow_node_is_seen_at_saturation() -> None:
    speeds = run([[BATCH] * 8] * 3, [1.0, 1.05, 1.0])
    assert speeds == {
        "node-0": pytest.approx(1.0),
        "node-1": pytest.approx(1 / 1.05, rel=1e-3),
        "node-2": pytest.approx(1.0),
    }


def test_a_slow_node_is_seen_although_it_was_given_less_to_do() -> None:
    """Under a load that does not saturate: tokens/s by node would say what the router gave it."""
    usual, little = [10, 20, 30, 40, 50, 60, 30, 20], [2, 8, 16, 24, 32, 16, 8, 4]
    speeds = run([usual, little, usual[::-1]], [1.0, 1.05, 1.0])
    assert speeds["node-1"] / speeds["node-0"] == pytest.approx(1 / 1.05, rel=2e-3)
    assert speeds["node-2"] / speeds["node-0"] == pytest.approx(1.0, rel=2e-3)


def test_one_request_at_a_time_tells_as_well() -> None:
    speeds = run([[1] * 6, [1] * 6], [1.0, 1.1])
    assert speeds["node-1"] / speeds["node-0"] == pytest.approx(1 / 1.1, rel=2e-3)


def test_accelerators_of_several_kinds_are_not_held_against_each_other() -> None:
    speeds = run([[BATCH] * 6] * 3, [1.0, 3.0, 3.0], ["MI355X", "MI300X", "MI300X"])
    assert speeds == {f"node-{number}": pytest.approx(1.0, rel=1e-3) for number in range(3)}


def test_a_long_run_is_thinned_to_the_same_answer() -> None:
    long = run([[BATCH] * 300, [BATCH] * 300], [1.0, 1.05])
    assert long["node-1"] / long["node-0"] == pytest.approx(1 / 1.05, rel=1e-3)


def test_without_steps_nothing_is_said() -> None:
    replica = SteppingReplica(name="r0")
    before = ModelCounters(time_s=0.0, num_queued=0, replicas=(replica.counters(),))
    replica.idle(1.0)
    after = ModelCounters(time_s=1.0, num_queued=0, replicas=(replica.counters(),))
    assert node_speeds([before, after], NODE_OF) == {}
    assert node_speeds([before], NODE_OF) == {}
