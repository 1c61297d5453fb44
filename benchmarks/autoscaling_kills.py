"""What `autoscaling.py --kill` kills, as `Stage.disturb`."""

import contextlib

import msgspec
import psutil
from nfold.cluster.controller.actuation import Actual
from nfold.cluster.processes import session_processes
from nfold.deployments.router_stats import RouterSnapshot


class Kills:
    """
    Args:
        service: its name.
        supervisor_pid: of the local cluster that serves it.
        node_type: of the node that is killed.
    """

    def __init__(self, service: str, supervisor_pid: int, node_type: str) -> None:
        self._service = service
        self._supervisor_pid = supervisor_pid
        self._node_type = node_type

    def serve_controller(self, actual: Actual) -> tuple[str, str]:
        self._find("ray::ServeController").kill()
        return "killed Serve's controller", ""

    def node(self, actual: Actual) -> tuple[str, str]:
        """The raylet of the youngest that serves; its workers die with it."""
        serving = {replica.node_id for replica in actual.replicas if replica.state == "running"}
        nodes = [node for node in actual.nodes if node.node_type == self._node_type and node.node_id in serving]
        victim = max(nodes, key=lambda node: node.since_s).node_id
        self._find(f"--node_id={victim}", program="raylet").kill()
        return "killed a node that serves", victim

    def gateway(self, actual: Actual) -> tuple[str, str] | None:
        """One of two."""
        return self._kill_gateways(1)

    def both_gateways(self, actual: Actual) -> tuple[str, str] | None:
        return self._kill_gateways(2)

    def _kill_gateways(self, count: int) -> tuple[str, str] | None:
        """Once both have streams."""
        held = self._streams_of_gateways()
        if len(held) != 2 or not all(held.values()):
            return None
        victims = list(held)[:count]
        for pid in victims:
            psutil.Process(pid).kill()
        streams = f"{sum(held[pid] for pid in victims)} of {sum(held.values())} streams"
        return f"killed {count} of 2 gateways, which had {streams}", ""

    def _streams_of_gateways(self) -> dict[int, int]:
        """As the living ones last told, less than a second or two ago, by their process ids."""
        from nfold.deployments import discovery  # these import ray, which must find the cluster's environment
        from nfold.deployments.gateway import GATEWAYS
        from ray._private.state import actors

        streams: dict[int, int] = {}
        told = discovery.list_gateways(self._service)
        for state in actors().values():
            name = state["Name"]
            raw = told.get(f"gateway-{name.rpartition('#')[2]}")
            if state["State"] == "ALIVE" and f"{self._service}#{GATEWAYS}#" in name and raw is not None:
                snapshot = msgspec.msgpack.decode(raw, type=RouterSnapshot)
                streams[int(state["Pid"])] = sum(replica.num_in_flight for replica in snapshot.replicas)
        return streams

    def _find(self, word: str, program: str = "") -> psutil.Process:
        """The process of the cluster with this in its command line."""
        for process in session_processes(self._supervisor_pid):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ends just now
                if program in process.name() and word in " ".join(process.cmdline()):
                    return process
        raise AssertionError(f"nothing runs that is {word}")
