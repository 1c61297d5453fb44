"""How fast nodes are against each other, by how long the steps of their replicas took.

Tokens/s by node is what a router gave it to do; under a load that does not saturate, that says nothing of the node.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...deployments.step_account import StepTotals
from ..ledger import ModelCounters, closest_curve, spans_by_replica

# More looks at a run make no better fit.
_MAX_LOOKS = 60
_MAX_ROUNDS = 12
_SETTLED = 1e-5

Steps = dict[str, list[StepTotals]]


def node_speeds(samples: Sequence[ModelCounters], node_of: Mapping[str, str]) -> dict[str, float]:
    """Of each node with steps: how fast these were against the median node's of its kind, for the same batches,
    prompts and contexts; 0.95 takes 5 % longer.

    Args:
        samples: oldest first.
        node_of: node of each replica.
    """
    kinds: dict[str, Steps] = {}
    yardsticks = {replica.replica: replica.yardstick for sample in samples for replica in sample.replicas}
    for replica, spans in spans_by_replica(_thinned(samples)).items():
        steps = [span.steps for span in spans if span.steps.num_steps and span.steps.step_s > 0.0]
        if steps:
            kinds.setdefault(yardsticks[replica], {}).setdefault(node_of[replica], []).extend(steps)
    return {node: speed for steps in kinds.values() for node, speed in _speeds(steps).items()}


def _speeds(steps: Steps) -> dict[str, float]:
    """One curve for all nodes and a factor for each, fitted in turns: fitted once, the curve would take a slow
    node's steps for what its batches and contexts cost, where these are its own."""
    speeds = dict.fromkeys(steps, 1.0)
    for _ in range(_MAX_ROUNDS):
        before = speeds
        evened = [
            replace(totals, step_s=totals.step_s * speeds[node])
            for node, of_node in steps.items()
            for totals in of_node
        ]
        curve = closest_curve(evened)
        assert curve is not None, "there are steps"
        found = {
            node: sum(curve.seconds(totals).total_s for totals in of_node)
            / sum(totals.step_s for totals in of_node)
            for node, of_node in steps.items()
        }
        median = statistics.median(found.values())
        speeds = {node: speed / median for node, speed in found.items()}
        if max(abs(speeds[node] - before[node]) for node in speeds) < _SETTLED:
            break
    return speeds


def _thinned(samples: Sequence[ModelCounters]) -> Sequence[ModelCounters]:
    """Counters are totals, so what lies between looks that are left out is in the next one."""
    every = -(-len(samples) // _MAX_LOOKS)
    return [*samples[:-1:every], samples[-1]] if every > 1 else samples
