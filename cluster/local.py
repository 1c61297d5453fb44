"""Starts local clusters and asks their supervisor for changes. `supervisor.py` is the other end."""

import contextlib
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from ..deployments.ray_environment import ray_environment
from ..models.errors import StateError
from ..models.settings import Settings
from .config import LocalClusterConfig, NfoldConfig
from .local_shape import RayNodeShape, ray_nodes
from .orders import Orders
from .provider.local_types import AUTOSCALER_ENVIRONMENT, cores_of_a_node, local_autoscaling
from .run_state import LocalNode, LocalRun, RunState, auth_token, clean_if_dead, find_run, run_directory

START_TIMEOUT_S = 60.0
NODE_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0

# Ray's sockets lie below the temp dir, and the path of a unix socket may have 107 characters at most.
TEMP_PARENT = "/tmp"

# Ray's processes keep cores busy when nothing is asked of them, which on a small machine are the engines' to use.
# What is off here nobody reads in a local cluster: Ray's own metrics, task events and statistics.
_FREE_CORES = {
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "RAY_memory_monitor_refresh_ms": "1000",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_kill_idle_workers_interval_ms": "2000",
}

Progress = Callable[[str], None]


def plan_local(config: NfoldConfig, local: LocalClusterConfig, home: Path) -> Orders:
    """Settle what a local cluster will be, down to its environment; makes its temp dir.

    Raises:
        ConfigError: more cores are wanted than this machine has.
    """
    cores = cores_of_a_node(local)
    temp_dir = Path(tempfile.mkdtemp(prefix="nfold-", dir=TEMP_PARENT))
    environment = ray_environment(config.http, temp_dir) | _cluster_environment(home, temp_dir)
    nodes, autoscaling = ray_nodes(local, cores), None
    if local.is_autoscaled:
        autoscaling = local_autoscaling(run_directory(home, config.name), local, nodes, cores)
        environment |= AUTOSCALER_ENVIRONMENT
    return Orders(
        config=config,
        nodes=nodes,
        cores_per_node=cores,
        temp_dir=temp_dir,
        environment=environment,
        autoscaling=autoscaling,
    )


def start_local(orders: Orders, home: Path, progress: Progress) -> RunState:
    """Start the nodes of a local cluster; they run until `stop`. When that fails, nothing of it stays.

    Args:
        home: where run directories are kept.
        progress: told in a few words what happens.

    Raises:
        StateError: this service runs already, or a node does not start; the message tells why.
    """
    directory = run_directory(home, orders.config.name)
    clean_if_dead(directory)
    with (directory / "supervisor.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nfold.cluster.supervisor", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=orders.temp_dir,
            env=os.environ | orders.environment | {"TMPDIR": str(orders.temp_dir)},  # what is killed leaves nothing
            start_new_session=True,  # Ctrl-C at the command line is not for the cluster
        )
    try:
        _hand_over(process, orders)
        _await_start(process, directory, START_TIMEOUT_S + len(orders.nodes) * NODE_TIMEOUT_S, progress)
    except BaseException:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)
        shutil.rmtree(orders.temp_dir, ignore_errors=True)
        raise
    return find_run(home, orders.config.name)


def _cluster_environment(home: Path, temp_dir: Path) -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": Settings.from_environment().ray_auth_token or auth_token(home),
        "RAY_TMPDIR": str(temp_dir),  # also keeps a bare `ray.init()` elsewhere from joining this cluster
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or clients replace 127.0.0.1 by an address of the network
        **_FREE_CORES,
        # glibc would give the engine's tensors back to the kernel and fetch zeroed pages anew at every step.
        # (It takes no higher limit than 32 MiB for what it maps apart.)
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    }


def _hand_over(process: subprocess.Popen[bytes], orders: Orders) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # if it has ended, its log tells why
        process.stdin.write(orders.model_dump_json().encode() + b"\n")


def _await_start(process: subprocess.Popen[bytes], directory: Path, timeout_s: float, progress: Progress) -> None:
    """Pass on what the supervisor tells until it is ready."""
    assert process.stdout is not None
    give_up_at = time.monotonic() + timeout_s
    with process.stdout, selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, give_up_at - time.monotonic())):
            line = process.stdout.readline()
            if not line:
                raise StateError(f"the local cluster did not start:\n{_tail(directory / 'supervisor.log')}")
            match json.loads(line):
                case {"ready": True}:
                    return
                case {"error": str(reason)}:
                    raise StateError(f"the local cluster did not start: {reason}")
                case {"progress": str(text)}:
                    progress(text)
                case other:
                    raise AssertionError(f"the supervisor says {other}")
    raise StateError(
        f"the local cluster did not start within {timeout_s:.0f} s:\n{_tail(directory / 'supervisor.log')}"
    )


def _tail(log: Path, num_lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-num_lines:])


def add_node(run: LocalRun, shape: RayNodeShape | None = None, instance_id: str = "") -> LocalNode:
    """Start one more node; without a shape, one that computes as the first ones do.

    Args:
        instance_id: as Ray's autoscaler knows it, when it asks.

    Raises:
        StateError: it does not start.
    """
    order = {"do": "add_node", "shape": shape.model_dump() if shape else None, "instance_id": instance_id}
    return LocalNode.model_validate(_ask(run, order, NODE_TIMEOUT_S)["node"])


def remove_node(run: LocalRun, name: str) -> None:
    """Stop a node other than the head; drain it before.

    Raises:
        StateError: it cannot be stopped.
    """
    assert name != run.nodes[0].name, "the head goes last, with the cluster"
    _ask(run, {"do": "remove_node", "name": name}, NODE_TIMEOUT_S)


def stop(run: LocalRun) -> None:
    """Stop all nodes and the supervisor. Returns when none of their processes is left.

    A supervisor that does not listen is killed, and the kernel kills its nodes.
    """
    supervisor = psutil.Process(run.supervisor_pid)
    try:
        _ask(run, {"do": "stop"}, STOP_TIMEOUT_S)
        supervisor.wait(STOP_TIMEOUT_S)
    except (StateError, psutil.TimeoutExpired):
        supervisor.kill()
        supervisor.wait(STOP_TIMEOUT_S)


def _ask(run: LocalRun, request: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(run.socket))
            connection.sendall(json.dumps(request).encode() + b"\n")
            line = connection.makefile("rb").readline()
    except TimeoutError:
        raise StateError(f"the cluster's supervisor did not answer {request} within {timeout_s:.0f} s") from None
    except OSError as error:
        raise StateError(
            f"the cluster's supervisor cannot be reached: {error.strerror}; try `nfold down`"
        ) from None
    if not line:
        raise StateError(f"the cluster's supervisor ended while it was asked for {request}")
    reply = json.loads(line)
    if "error" in reply:
        raise StateError(f"the local cluster: {reply['error']}")
    return reply
