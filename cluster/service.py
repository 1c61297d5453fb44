"""A service from start to end: the cluster under it, its deployment, its observer. Progress is told in words.

Modules that import Ray are imported inside: the environment that Ray reads is settled first (see `connect.py`).
"""

import contextlib
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..deployments.config import ServedModelConfig
from ..deployments.ray_environment import ray_environment
from ..models.errors import StateError
from . import local as local_cluster
from .config import LocalClusterConfig, NfoldConfig
from .connect import apply_environment, connect, disconnect
from .local_shape import expected_nodes
from .run_state import RunState, check_not_running, find_run, forget_state, run_directory, write_state

if TYPE_CHECKING:
    from ..deployments.application import ServicePlan
    from ..deployments.placement import NodeResources
    from ..deployments.readiness import PoolProgress

READY_TIMEOUT_S = 600.0
DRAIN_SLACK_S = 60.0

Progress = Callable[[str], None]


def start_service(config: NfoldConfig, home: Path, progress: Progress) -> RunState:
    """Start or join the cluster, deploy, wait until the service answers. This process stays connected.

    Raises:
        NfoldError: why not; nothing that this call started stays.
    """
    progress("checking the config")
    check_not_running(home, config.name)
    local = config.cluster.local_or_default
    state = _join(config, home) if local is None else _start_local(config, local, home, progress)
    started = state.local is not None
    try:
        connect(state.address, state.environment)
        since, plan = time.time(), _deploy(config)
        started = True
        progress("deploying")
        _wait_ready(config, plan, since, progress)
        _start_controller(config, home)
    except BaseException:
        with contextlib.suppress(StateError):  # the first error is the one to tell
            if started:  # else a service of this name on a cluster that others use is not ours
                stop_service(state, home, progress, drain=False)
        forget_state(run_directory(home, config.name))
        raise
    return state


def _start_local(config: NfoldConfig, local: LocalClusterConfig, home: Path, progress: Progress) -> RunState:
    _check_ports(config)
    orders = local_cluster.plan_local(config, local, home)
    try:
        apply_environment(orders.environment)
        _check_plan(config, expected_nodes(orders.nodes))
    except BaseException:
        shutil.rmtree(orders.temp_dir)
        raise
    return local_cluster.start_local(orders, home, progress)


def _join(config: NfoldConfig, home: Path) -> RunState:
    assert config.cluster.address is not None
    state = RunState(
        config=config, address=config.cluster.address, environment=ray_environment(config.http), local=None
    )
    write_state(run_directory(home, config.name), state)
    return state


def _check_plan(config: NfoldConfig, nodes: "Sequence[NodeResources]") -> None:
    from ..deployments.application import plan_service

    plan_service(config, nodes)


def only_model(config: NfoldConfig) -> str:
    """The model that is meant when none is named.

    Raises:
        StateError: several are served.
    """
    names = [model.name for model in config.models]
    if len(names) > 1:
        raise StateError(f"several models are served; say which of {', '.join(names)}")
    return names[0]


def _check_ports(config: NfoldConfig) -> None:
    for field, listener in (("http", config.http), ("metrics", config.metrics)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((listener.host, listener.port))
            except OSError as error:
                raise StateError(
                    f"{field}.port: nothing can listen on {listener.host}:{listener.port} ({error.strerror}); "
                    "another service may have it. Free it, or take another in the config"
                ) from None


def _deploy(config: NfoldConfig) -> "ServicePlan":
    from ..deployments.application import deploy

    return deploy(config)


def _wait_ready(config: NfoldConfig, plan: "ServicePlan", since: float, progress: Progress) -> None:
    from ..deployments.readiness import wait_ready
    from .observer_app import deploy_observer, wait_observer

    if config.metrics.enabled:
        deploy_observer(config)
    wait_ready(config, plan, READY_TIMEOUT_S, told_pools(progress), since)
    if config.metrics.enabled:
        wait_observer(config)


def _start_controller(config: NfoldConfig, home: Path) -> None:
    if config.controller.enabled:
        from .controller.app import deploy_controller

        deploy_controller(config, home)


def told_pools(progress: Progress) -> "Callable[[Sequence[PoolProgress]], None]":
    """Passes on how far the pools are, as one line."""

    def tell(pools: "Sequence[PoolProgress]") -> None:
        progress("; ".join(map(str, pools)))

    return tell


def served_model(config: NfoldConfig, name: str) -> ServedModelConfig:
    """The model of this name.

    Raises:
        StateError: no such model is served.
    """
    for model in config.models:
        if model.name == name:
            return model
    raise StateError(f"no model named {name!r} is served; there is {', '.join(m.name for m in config.models)}")


def api_url(config: NfoldConfig) -> str:
    """Where OpenAI clients find the service, from this machine."""
    return f"http://{_from_here(config.http.host)}:{config.http.port}/v1"


def metrics_url(config: NfoldConfig) -> str:
    """Where Prometheus finds it, from this machine."""
    return f"http://{_from_here(config.metrics.host)}:{config.metrics.port}/metrics"


def observer_url(config: NfoldConfig) -> str:
    """The observer's figures as JSON."""
    return metrics_url(config).removesuffix("metrics") + "status.json"


def listeners(config: NfoldConfig) -> dict[str, str]:
    """What listens where, for people."""
    return {"API": api_url(config), "metrics": metrics_url(config)}


def _from_here(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host


def stop_service(state: RunState, home: Path, progress: Progress, *, drain: bool = True) -> None:
    """End the service, and the local cluster under it.

    Args:
        drain: finish what is in progress; else a local cluster is ended as it is.

    Raises:
        StateError: a running cluster cannot be reached, or the service does not end in time.
    """
    if state.local is None:
        _take_down(state, progress)
    else:
        if drain:
            try:
                _take_down(state, progress)
            except StateError as error:
                progress(f"ending without draining: {error}")
        disconnect()
        progress("stopping the local cluster")
        local_cluster.stop(state.local)
    forget_state(run_directory(home, state.config.name))


def _take_down(state: RunState, progress: Progress) -> None:
    """Drain the service on its cluster, which stays.

    Raises:
        StateError: the cluster cannot be reached, or draining takes longer than the config allows.
    """
    connect(state.address, state.environment)
    from ray.exceptions import RayError

    from ..deployments.application import take_down
    from .controller.app import remove_controller
    from .observer_app import remove_observer

    progress("draining")
    try:
        remove_controller(state.config.name)
        remove_observer(state.config.name)
        take_down(state.config.name, state.config.drain_timeout_s + DRAIN_SLACK_S)
    except RayError as error:
        raise StateError(f"the Ray cluster at {state.address} fails: {error}") from None


def running_service(home: Path, name: str | None) -> RunState:
    """The service that commands mean; this process joins its cluster.

    Raises:
        StateError: none runs, or its cluster does not answer.
    """
    state = find_run(home, name)
    connect(state.address, state.environment)
    return state
