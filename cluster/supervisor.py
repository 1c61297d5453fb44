"""The process that owns a local cluster's Ray nodes: `python -m nfold.cluster.supervisor RUN_DIRECTORY`.

It gets its `Orders` as one line of JSON on standard input, tells how the start goes on standard output, one JSON
object per line (`{"progress": text}`, at last `{"ready": true}` or `{"error": text}`), and from then on answers
requests on a unix socket, one JSON object per connection and direction:

    {"do": "add_node", "shape": ...,      {"node": LocalNode}; shape null means one that computes as the first ones
     "instance_id": ...}
    {"do": "remove_node", "name": ...}    {}
    {"do": "stop"}                        {} when all is gone but this process
    whatever fails                        {"error": text}

It ends on `stop`, on SIGTERM or SIGINT, and when the head of the cluster dies, and takes along all that it started.
"""

import json
import os
import shutil
import signal
import socketserver
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, cast

from .local_nodes import LocalNodes
from .local_shape import RayNodeShape, computing_shape
from .orders import Orders
from .processes import end_session, let_other_sessions_first
from .run_state import LocalRun, RunState, forget_state, try_lock, write_state

LOOK_AT_HEAD_S = 1.0

Tell = Callable[[dict[str, object]], None]


class Supervisor(socketserver.UnixStreamServer):
    """Serves requests one at a time in the main thread, as Ray starts nodes there only."""

    timeout = LOOK_AT_HEAD_S

    def __init__(self, directory: Path, orders: Orders, nodes: LocalNodes) -> None:
        super().__init__(str(orders.socket), _Connection)
        self._directory = directory
        self._orders = orders
        self._nodes = nodes
        self._stopping = False

    def run(self) -> None:
        """Serve until told to stop, or until the head dies."""
        self._take_signals()
        while not self._stopping:
            self.handle_request()
            if not self._stopping and not self._nodes.head_is_alive:
                print("the head of the cluster died", flush=True)
                return

    def record(self) -> None:
        """Write down what runs."""
        local = LocalRun(
            supervisor_pid=os.getpid(),
            socket=self._orders.socket,
            nodes=self._nodes.nodes,
        )
        state = RunState(
            config=self._orders.config,
            address=self._nodes.address,
            environment=self._orders.environment,
            local=local,
        )
        write_state(self._directory, state)

    def answer(self, request: dict[str, Any]) -> dict[str, object]:
        match request:
            case {"do": "add_node", "shape": shape, "instance_id": str(instance_id)}:
                like_the_first = computing_shape(self._orders.cores_per_node)
                node = self._nodes.add(
                    RayNodeShape.model_validate(shape) if shape else like_the_first, instance_id=instance_id
                )
                self._take_signals()
                self.record()
                return {"node": node.model_dump()}
            case {"do": "remove_node", "name": str(name)}:
                self._nodes.remove(name)
                self.record()
                return {}
            case {"do": "stop"}:
                self._stopping = True
                end_cluster(self._nodes)
                forget_state(self._directory)
                return {}
            case _:
                return {"error": f"no such request: {request}"}

    def _take_signals(self) -> None:
        """Ray takes SIGTERM for itself whenever it starts a node."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True


class _Connection(socketserver.StreamRequestHandler):
    timeout = 5.0

    def handle(self) -> None:
        assert isinstance(self.server, Supervisor)
        request = cast(dict[str, Any], json.loads(self.rfile.readline()))
        try:
            reply = self.server.answer(request)
        except Exception as error:  # what Ray raises is told to who asked; the cluster lives on
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        self.wfile.write(json.dumps(reply).encode() + b"\n")


def end_cluster(nodes: LocalNodes) -> None:
    """Stop the nodes and see to it that none of their processes stays."""
    try:
        nodes.close()
    finally:
        for process in end_session(os.getpid()):
            print(f"had to kill process {process.pid}", flush=True)


def main() -> None:
    directory = Path(sys.argv[1])
    orders = Orders.model_validate_json(sys.stdin.readline())
    tell = _redirect_output(directory / "supervisor.log")
    lock = try_lock(directory)
    if lock is None:
        tell({"error": f"a service named {directory.name} is running already; see `nfold status`"})
        return
    with lock:
        try:
            _supervise(directory, orders, tell)
        finally:
            forget_state(directory)
            shutil.rmtree(orders.temp_dir, ignore_errors=True)


def _supervise(directory: Path, orders: Orders, tell: Tell) -> None:
    if any(shape.num_cores for shape in orders.nodes):
        let_other_sessions_first()  # engines use whole cores, and who asks them for answers would be the limit
    nodes = LocalNodes(orders.write_autoscaling())
    try:
        for number, shape in enumerate(orders.nodes, 1):
            tell({"progress": f"starting node {number} of {len(orders.nodes)}"})
            nodes.add(shape, wait=False)
        nodes.wait_until_known()
        with Supervisor(directory, orders, nodes) as supervisor:
            supervisor.record()
            tell({"ready": True})
            supervisor.run()
    except BrokenPipeError:
        print("whoever asked for the cluster went away", flush=True)
    except Exception as error:  # what Ray raises is told to who asked
        tell({"error": f"{type(error).__name__}: {error}"})
        raise
    finally:
        end_cluster(nodes)


def _redirect_output(log: Path) -> Tell:
    """All that this process and Ray's starters print goes to the log; returns what tells the asker."""
    asker = os.fdopen(os.dup(1), "w")
    log_descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log_descriptor, descriptor)
    os.close(log_descriptor)

    def tell(message: dict[str, object]) -> None:
        asker.write(json.dumps(message) + "\n")
        asker.flush()

    return tell


if __name__ == "__main__":
    main()
