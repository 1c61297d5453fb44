"""How the nodes of a record stand against each other. Pure.

What all nodes of one machine or one moment share is in each of them, so a node against the others of its own run is
known more closely than its rate.
"""

import statistics

from .record import RunFigures, RunRecord
from .scenarios import Scenario


def told_by_steps(*records: RunRecord) -> bool:
    """Whether all of them know how fast their nodes' steps were."""
    return all(len(run.node_speeds) > 1 for record in records for run in record.whole.runs)


def slowest_nodes(record: RunRecord, *, by_steps: bool) -> list[float]:
    """Of each run that counts: how fast the slowest node was, the median of the others being 1. Empty where nothing
    tells."""
    runs = [_against_others(record, run, by_steps) for run in record.whole.runs if run.counts]
    return [min(nodes.values()) for nodes in runs if nodes]


def mean_by_node(record: RunRecord, *, by_steps: bool) -> dict[str, float]:
    """How fast each node was, the median of the others being 1: mean over all runs."""
    runs = [nodes for run in record.whole.runs if (nodes := _against_others(record, run, by_steps))]
    names = sorted({name for nodes in runs for name in nodes})
    return {name: statistics.fmean(nodes[name] for nodes in runs if name in nodes) for name in names}


def _against_others(record: RunRecord, run: RunFigures, by_steps: bool) -> dict[str, float]:
    """Of one run, by node. Without the steps it is the tokens/s of an accelerator, which under another load than
    Offline's is what the router gave it to do, and tells nothing."""
    if by_steps:
        rates = run.node_speeds
    elif record.workload.scenario is Scenario.OFFLINE:
        healthy = {node.name: node.healthy for node in record.nodes}
        rates = {name: rate / max(healthy.get(name, 1), 1) for name, rate in run.node_tokens_per_s.items()}
    else:
        return {}
    if len(rates) < 2 or min(rates.values()) <= 0:
        return {}
    others = {name: [rate for other, rate in rates.items() if other != name] for name in rates}
    return {name: rate / statistics.median(others[name]) for name, rate in rates.items()}
