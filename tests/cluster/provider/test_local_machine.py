"""The provider of local nodes: what the supervisor recorded and what it was asked for. No Ray runs."""

import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nfold.cluster.config import NfoldConfig
from nfold.cluster.provider.local_machine import LocalMachine
from nfold.cluster.run_state import LocalNode, LocalRun, RunState, write_state
from nfold.models.errors import StateError
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE


class FakeSupervisor:
    """Answers orders as the real one does, one at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.orders: list[dict[str, Any]] = []
        self.nodes = [_node("node-0", "cpu", "node-0-aa")]
        self.error = ""
        self.seen_while_starting: list[str] = []
        self.provider: LocalMachine | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "s"))
        self._listener.listen()
        self.record()
        threading.Thread(target=self._serve, daemon=True).start()

    def record(self) -> None:
        local = LocalRun(supervisor_pid=1, socket=self.directory / "s", nodes=tuple(self.nodes))
        state = RunState(config=NfoldConfig.default(), address="a:1", environment={}, local=local)
        write_state(self.directory, state)

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                order = json.loads(connection.makefile("rb").readline())
                connection.sendall(json.dumps(self._answer(order)).encode() + b"\n")

    def _answer(self, order: dict[str, Any]) -> dict[str, Any]:
        self.orders.append(order)
        if self.error:
            return {"error": self.error}
        if order["do"] == "remove_node":
            self.nodes = [node for node in self.nodes if node.name != order["name"]]
            self.record()
            return {}
        if self.provider is not None:
            self.seen_while_starting = self.provider.non_terminated_nodes({})
        node = _node(f"node-{len(self.nodes)}", order["shape"]["node_type"], order["instance_id"])
        self.nodes.append(node)
        self.record()
        return {"node": node.model_dump()}


def _node(name: str, node_type: str, instance_id: str) -> LocalNode:
    return LocalNode(name=name, node_id="ff", cores=(), node_type=node_type, instance_id=instance_id)


@pytest.fixture
def supervisor() -> Iterator[FakeSupervisor]:
    with tempfile.TemporaryDirectory(prefix="nf", dir="/tmp") as directory:  # a socket's path has to be short
        yield FakeSupervisor(Path(directory))


@pytest.fixture
def provider(supervisor: FakeSupervisor) -> LocalMachine:
    supervisor.provider = LocalMachine({"run_directory": str(supervisor.directory)}, "nfold")
    return supervisor.provider


def create(provider: LocalMachine, count: int = 1) -> None:
    tags = {TAG_RAY_USER_NODE_TYPE: "big"}
    provider.create_node_with_resources_and_labels({}, tags, count, {"CPU": 2.0, "simulated-X": 4.0}, {})


def test_nodes_are_what_the_supervisor_recorded(provider: LocalMachine) -> None:
    assert provider.non_terminated_nodes({}) == ["node-0-aa"]
    assert provider.node_tags("node-0-aa")[TAG_RAY_NODE_KIND] == "head"
    create(provider, 2)
    heads, workers = (provider.non_terminated_nodes({TAG_RAY_NODE_KIND: kind}) for kind in ("head", "worker"))
    assert heads == ["node-0-aa"]
    assert len(set(workers)) == 2
    assert {provider.node_tags(name)[TAG_RAY_USER_NODE_TYPE] for name in workers} == {"big"}
    assert all(map(provider.is_running, workers))


def test_the_supervisor_is_told_what_the_node_has(provider: LocalMachine, supervisor: FakeSupervisor) -> None:
    create(provider)
    assert supervisor.orders[0]["shape"] == {
        "num_cores": 2,
        "resources": {"simulated-X": 4.0},
        "node_type": "big",
    }


def test_a_node_is_known_before_ray_can_know_it(provider: LocalMachine, supervisor: FakeSupervisor) -> None:
    """Else Ray's autoscaler counts it twice and ends one."""
    create(provider)
    assert supervisor.orders[0]["instance_id"] in supervisor.seen_while_starting


def test_a_node_that_does_not_start_is_forgotten(provider: LocalMachine, supervisor: FakeSupervisor) -> None:
    supervisor.error = "no memory"
    with pytest.raises(StateError, match="no memory"):
        create(provider)
    assert provider.non_terminated_nodes({}) == ["node-0-aa"]


def test_a_node_is_ended_once_and_the_head_never(provider: LocalMachine, supervisor: FakeSupervisor) -> None:
    create(provider)
    (name,) = provider.non_terminated_nodes({TAG_RAY_NODE_KIND: "worker"})
    for instance_id in (name, name, "node-0-aa", "unknown"):
        provider.terminate_node(instance_id)
    assert provider.is_terminated(name)
    assert [order for order in supervisor.orders if order["do"] == "remove_node"] == [
        {"do": "remove_node", "name": "node-1"}
    ]


def test_a_cluster_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no local cluster is recorded"):
        LocalMachine({"run_directory": str(tmp_path)}, "nfold").non_terminated_nodes({})
