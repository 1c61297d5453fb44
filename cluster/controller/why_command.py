"""`nfold why`: gathers what Ray, Serve and the controller say, and explains it. Needs a connected process."""

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ...deployments import discovery
from ...deployments.nodes import alive_nodes
from ..config import NfoldConfig
from .actuator import RayActuator, find_node_types
from .latest import latest
from .misfits import Room
from .why import Finding, Observed, Start, explain
from .wording import nodes_of


def observe(config: NfoldConfig) -> Observed:
    """What is now.

    Raises:
        StateError: the service is not running, or Ray does not answer.
    """
    nodes = alive_nodes()
    names = {node.node_id: node.name for node in nodes}
    decision = latest(config.name)
    types = find_node_types(config)
    actual = RayActuator(config, types).observe()
    running = {replica.replica_id for replica in actual.replicas if replica.state == "running"}
    draining = {node.node_id for node in actual.nodes if node.state == "draining"}
    return Observed(
        pools=config.pools,
        models={
            name: model.name
            for model in config.models
            for name in config.pools
            if name.startswith(f"{model.name}--")
        },
        actual=actual,
        rooms={
            node.node_id: Room(node.name, node.total, node.free) for node in nodes if node.node_id not in draining
        },
        names=names,
        starts=[
            Start(pool=one.pool, node=names.get(one.node_id, one.node_id), phase=one.phase, error=one.error)
            for one in discovery.list_starts(config.name)
            if one.phase != "ready" and one.replica_id not in running
        ],
        decision=decision,
        decision_age_s=time.time() - decision.time_s if decision else None,
        enabled=config.controller.enabled,
        max_nodes={name: scaling.max_nodes for name, scaling in config.controller.models.items()},
    )


def render(observed: Observed, findings: Sequence[Finding]) -> RenderableType:
    """For the terminal; without colour it reads the same."""
    parts: list[RenderableType] = []
    for finding in findings:
        parts += [Text(finding.subject, style="bold"), Text(f"  because  {finding.cause}")]
        parts.append(Text(f"  resolve  {finding.remedy}"))
    if not findings:
        parts.append(Text("nothing is pending: all replicas that are wanted serve"))
    if observed.decision is not None:
        age_s = observed.decision_age_s or 0.0
        parts.append(Text(f"latest decision, {observed.decision.number}, {age_s:.0f} s ago:", style="dim"))
        for verdict in observed.decision.verdicts:
            parts.append(
                Text(
                    f"  {verdict.model}: {verdict.action} ({nodes_of(verdict.after)}): {verdict.reason}",
                    style="dim",
                )
            )
    return Group(*parts)


def why(config: NfoldConfig) -> RenderableType:
    """The answer. Raises as `observe`."""
    observed = observe(config)
    return render(observed, explain(observed))
