"""The environment that Ray must be started with, on every node and in every driver, before `ray` is imported.

Local clusters and `ray_cluster.yaml` take it from here, so that both serve alike.
"""

import random
import socket
import sysconfig
from pathlib import Path

from ..models.errors import ConfigError, StateError
from .config import HttpConfig
from .haproxy import BINARY_VARIABLE, PROGRAM

# HAProxy makes Unix sockets below the directory, in a folder named by Ray's node id (56 characters); the path of a
# Unix socket may have 107.
MAX_DIRECTORY_CHARS = 24
# A block of ports per cluster, below those that systems hand out: of these Ray takes many while it starts.
# The first three are HAProxy's side ports; on each of the others a gateway listens for HAProxy.
PORT_BLOCKS = range(20000, 30000, 100)

_SERVE = {
    # One event loop drives the router and the HTTP server of a gateway: no hop between threads per chunk.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # A batch of prompts through a handle is one message.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 << 20),
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
    # The controller looks every 0.1 s by default, at the cost of the replicas of a small machine.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's workers are nice to others by default (15); engines and gateways are what the machine is for.
    "RAY_worker_niceness": "0",
}
_HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # A reload leaves the old process to finish its streams; by default it cuts them after two minutes.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
    # Ports of ended gateways are not used again for as long as Serve's default, not for an hour and more.
    "RAY_SERVE_PORT_QUARANTINE_S": "150",
    # A gateway that refuses a connection is dead; it counts as down until it answers HAProxy's checks again.
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
    # A request is sent again when its gateway dies if it fits this buffer; HAProxy's others have the same size.
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(64 << 10),
    # How long an ending gateway takes new connections, until every HAProxy has read that it ends.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    # One datagram per request to a Python process, for metrics that nfold has anyway.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
}


def ray_environment(http: HttpConfig, private_directory: Path | None = None) -> dict[str, str]:
    """Environment variables for Ray; does not include RAY_AUTH_MODE and its token, which are the cluster's own.

    Args:
        private_directory: an existing directory for HAProxy's files, when several clusters share this machine:
            HAProxy's side ports are then picked among the free ones, too. None takes Serve's usual places.

    Raises:
        ConfigError: the directory's path is too long.
        StateError: this machine has no free ports left.
    """
    if http.ingress == "proxy":
        return dict(_SERVE)
    environment = _SERVE | _HAPROXY | {BINARY_VARIABLE: str(Path(sysconfig.get_path("scripts")) / PROGRAM)}
    if private_directory is None:
        return environment
    if len(str(private_directory)) > MAX_DIRECTORY_CHARS:
        raise ConfigError("private_directory", str(private_directory), f"at most {MAX_DIRECTORY_CHARS} characters")
    prefix = "RAY_SERVE_HAPROXY_"
    metrics, stats, fallback, first_ingress = _free_block()
    return environment | {
        f"{prefix}CONFIG_FILE_LOC": str(private_directory / "haproxy.cfg"),
        f"{prefix}SOCKET_PATH": str(private_directory / "admin.sock"),
        f"{prefix}SERVER_STATE_BASE": str(private_directory),
        f"{prefix}SERVER_STATE_FILE": str(private_directory / "server-state"),
        f"{prefix}METRICS_SOCKET_PATH": str(private_directory / "metrics.sock"),
        f"{prefix}METRICS_PORT": str(metrics),
        f"{prefix}STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first_ingress),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(metrics + PORT_BLOCKS.step - 1),
    }


def _free_block() -> tuple[int, int, int, int]:
    """The first four ports of a block in which nothing listens on them; another cluster may still take it, too."""
    for first in random.sample(PORT_BLOCKS, len(PORT_BLOCKS)):
        if all(map(_is_free, range(first, first + 4))):
            return first, first + 1, first + 2, first + 3
    raise StateError(f"all ports from {PORT_BLOCKS.start} to {PORT_BLOCKS.stop} are taken on this machine")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
