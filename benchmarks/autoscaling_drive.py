"""Clients whose load steps, for all programs that scale, and stages that have to settle, for `autoscaling.py`."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from helper_process import HelperProcess
from nfold.cluster.controller.actuation import Actual, Actuator, NodeState, Target
from nfold.models.errors import StateError

TICK_S = 1.0
SETTLE_TIMEOUT_S = 180.0


class ClientProcess(HelperProcess):
    """`autoscaling_clients.py`."""

    def __init__(self, url: str, max_tokens: int, *options: str) -> None:
        super().__init__("autoscaling_clients.py", "--url", url, "--max-tokens", str(max_tokens), *options)

    def want(self, streams: Mapping[str, int]) -> dict[str, Any]:
        """So many streams of each model from now on; the counts until now."""
        return self.ask({"streams": dict(streams)})

    def counts(self) -> dict[str, Any]:
        return self.ask({})

    def end(self) -> dict[str, Any]:
        """When all streams have ended."""
        return self.ask({"end": True})


Disturb = Callable[[Actual], tuple[str, str] | None]


@dataclass(frozen=True)
class Stage:
    """
    Attributes:
        name: what is to happen, for people.
        streams: by model.
        nodes: by node type; replicas: by pool.
        disturb: called while the cluster is on its way there, until it tells what it did, and the node that it
            killed; None when it is too early.
    """

    name: str
    streams: Mapping[str, int]
    nodes: Mapping[str, int]
    replicas: Mapping[str, int]
    disturb: Disturb | None = None


@dataclass
class Event:
    """One stage as it went.

    Attributes:
        num_open: requests under way when it was disturbed.
        longest_wait_s: for the first byte of an answer.
    """

    name: str
    seconds: float = 0.0
    first_node_s: float | None = None
    num_done: int = 0
    num_failed: int = 0
    num_cut: int = 0
    num_open: int = 0
    longest_wait_s: float = 0.0
    flaps: int = 0
    blind_ticks: int = 0
    disturbed: str = ""
    steps: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        node = "" if self.first_node_s is None else f", node after {self.first_node_s:.1f} s"
        killed = f", {self.disturbed}" if self.disturbed else ""
        blind = f", {self.blind_ticks} ticks blind" if self.blind_ticks else ""
        return (
            f"{self.name}: {self.seconds:5.1f} s{node}{killed}{blind}; {self.num_done} streams done, "
            f"{self.num_failed} failed, {self.num_cut} cut, {self.flaps} flaps, "
            f"first byte after {self.longest_wait_s:.1f} s at most"
        )


def run_stage(
    actuator: Actuator, clients: ClientProcess, stage: Stage, decision: int, hold_s: float = 2.0
) -> Event:
    """Set load and target, and converge until nothing moves any more.

    Raises:
        StateError: it does not settle.
    """
    before = clients.want(stage.streams)
    event, begin, seen, killed, num_done = Event(stage.name), time.monotonic(), None, "", 0
    target = Target(decision=decision, nodes=stage.nodes, replicas=stage.replicas)
    while True:
        elapsed_s = time.monotonic() - begin
        if elapsed_s > SETTLE_TIMEOUT_S:
            raise StateError(f"{stage.name} has not settled after {elapsed_s:.0f} s: {event.steps[-1:]}")
        try:
            actual = actuator.observe()
            actuator.converge(target)
        except StateError as error:
            event.blind_ticks += 1
            event.steps.append(f"{elapsed_s:5.1f} s: {error}")
            time.sleep(TICK_S)
            continue
        here = ready_nodes(actual)
        if seen is not None and here != seen:
            event.first_node_s = event.first_node_s or elapsed_s
            event.flaps += 0 if killed else _against(seen, here, stage.nodes)
        seen = here
        event.steps.append(f"{elapsed_s:5.1f} s: {describe(actual)}")
        if stage.disturb is not None and not event.disturbed and elapsed_s > TICK_S:
            counts = clients.counts()
            event.num_open, num_done = sum(counts["open"].values()), counts["num_done"]
            event.disturbed, killed = stage.disturb(actual) or ("", "")
        elif stage.disturb is None or event.disturbed:
            alive = any(node.node_id == killed and node.state == NodeState.READY for node in actual.nodes)
            answers = not event.disturbed or clients.counts()["num_done"] > num_done
            if is_settled(actual, target) and answers and not alive:  # Ray needs a while to notice
                break
        time.sleep(TICK_S)
    event.seconds = time.monotonic() - begin
    time.sleep(hold_s)
    after = clients.counts()
    for name in ("num_done", "num_failed", "num_cut"):
        setattr(event, name, after[name] - before[name])
    event.longest_wait_s = after["longest_wait_s"]
    return event


def ready_nodes(actual: Actual) -> dict[str, int]:
    return {each.name: actual.count(each.name, NodeState.READY) for each in actual.node_types}


def is_settled(actual: Actual, target: Target) -> bool:
    """Exactly what is wanted is there, and nothing comes or goes."""
    moving = any(
        node.state in (NodeState.REQUESTED, NodeState.STARTING, NodeState.DRAINING) for node in actual.nodes
    )
    nodes = all(actual.count(name, NodeState.READY) == count for name, count in target.nodes.items())
    pools = all(
        (pool.running, pool.starting, pool.draining) == (target.replicas[pool.pool], 0, 0) for pool in actual.pools
    )
    return nodes and pools and not moving


def _against(before: Mapping[str, int], after: Mapping[str, int], wanted: Mapping[str, int]) -> int:
    """Nodes that came or went although that led away from what is wanted."""
    return sum(
        max(0, abs(after[name] - count) - abs(before[name] - count))
        for name, count in wanted.items()
        if name in after
    )


def describe(actual: Actual) -> str:
    nodes = ", ".join(
        f"{actual.count(each.name, state)} {each.name} {state.value}"
        for each in actual.node_types
        for state in NodeState
        if actual.count(each.name, state)
    )
    pools = "; ".join(
        f"{pool.pool}: {pool.running} of {pool.wanted} run, {pool.starting} start, {pool.draining} drain"
        for pool in actual.pools
    )
    return f"{nodes} | {pools}"
