"""Nodes of a service as a record keeps them. Import only where Ray's environment is settled."""

from collections.abc import Mapping, Sequence

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...deployments.addresses import ReplicaAddress
from ...deployments.nodes import alive_nodes
from ...deployments.placement import GPU, NodeResources
from ...deployments.simulated_config import SIMULATED_PREFIX
from .host_facts import host_facts
from .record import HostFacts, NodeFacts

_TIMEOUT_S = 60.0


def nodes_of(replicas: Sequence[ReplicaAddress], names: Mapping[str, str]) -> dict[str, str]:
    """Node of each replica by its id, for people. Simulated nodes, which may share a Ray node, are told apart by
    the host of their engines and numbered."""
    hosts = sorted({_simulated_host(replica) for replica in replicas if replica.engine == "simulated"})
    return {
        replica.replica_id: f"sim-{hosts.index(_simulated_host(replica)):02d}"
        if replica.engine == "simulated"
        else names.get(replica.node_id, replica.node_id)
        for replica in replicas
    }


def topology(
    replicas: Sequence[ReplicaAddress], nodes: Mapping[str, str]
) -> tuple[list[NodeFacts], list[HostFacts]]:
    """The nodes that these replicas are on, and the machines under them.

    Args:
        nodes: see `nodes_of`.
    """
    there = {node.node_id: node for node in alive_nodes()}
    by_machine: dict[str, str] = {}
    for replica in replicas:
        if replica.node_id in there:
            by_machine.setdefault(there[replica.node_id].address, replica.node_id)
    hosts = _read_hosts(by_machine)
    machines = list(hosts)
    found: list[NodeFacts] = []
    for name in sorted(set(nodes.values())):
        mine = [replica for replica in replicas if nodes[replica.replica_id] == name]
        node = there.get(mine[0].node_id)
        machine = node.address if node is not None else None
        found.append(
            NodeFacts(
                name=name,
                accelerator=mine[0].accelerator,
                healthy=sum(replica.tp for replica in mine),
                installed=None if node is None else _installed(node, mine[0]),
                host=machines.index(machine) if machine in hosts else None,
            )
        )
    return found, list(hosts.values())


def _installed(node: NodeResources, replica: ReplicaAddress) -> int | None:
    """Accelerators that Ray knows of on this node; simulated ones have no unhealthy siblings."""
    if replica.engine == "simulated" or replica.accelerator.startswith(SIMULATED_PREFIX):
        return None
    gpus = int(node.total.get(GPU, 0))
    return gpus or None


def _read_hosts(node_ids: Mapping[str, str]) -> dict[str, HostFacts]:
    """By machine; one that does not answer is left out."""
    read = ray.remote(num_cpus=0)(host_facts)
    tasks = {
        machine: read.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote()
        for machine, node_id in node_ids.items()
    }
    found: dict[str, HostFacts] = {}
    for machine, task in tasks.items():
        try:
            found[machine] = ray.get(task, timeout=_TIMEOUT_S)
        except RayError:
            continue
    return found


def _simulated_host(replica: ReplicaAddress) -> str:
    """Engines' names differ behind the last dot only."""
    return replica.replica_id.rpartition(".")[0]
