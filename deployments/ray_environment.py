"""The environment that Ray must be started with, on every node and in every driver, before `ray` is imported.

Local clusters and `ray_cluster.yaml` take it from here, so that both serve alike.
"""

import random
import socket
import sysconfig
from pathlib import Path

from ..models.errors import ConfigError
from .config import HttpConfig
from .haproxy import BINARY_VARIABLE, PROGRAM

# HAProxy makes Unix sockets below the directory, in a folder named by Ray's node id (56 characters); the path of a
# Unix socket may have 107.
MAX_DIRECTORY_CHARS = 24
# Each gateway listens on a port of its own, where HAProxy finds it. Below those that systems give to clients.
INGRESS_PORTS = range(20000, 30000, 100)

_SERVE = {
    # One event loop drives the router and the HTTP server of a gateway: no hop between threads per chunk.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # A reload leaves the old process to finish its streams; by default it cuts them after two minutes.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
    # Ports of ended gateways are not used again for as long as Serve's default, not for an hour and more.
    "RAY_SERVE_PORT_QUARANTINE_S": "150",
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
    """
    if http.ingress == "proxy":
        return dict(_SERVE)
    environment = _SERVE | _HAPROXY | {BINARY_VARIABLE: str(Path(sysconfig.get_path("scripts")) / PROGRAM)}
    if private_directory is None:
        return environment
    if len(str(private_directory)) > MAX_DIRECTORY_CHARS:
        raise ConfigError("private_directory", str(private_directory), f"at most {MAX_DIRECTORY_CHARS} characters")
    prefix = "RAY_SERVE_HAPROXY_"
    metrics, stats, fallback = _free_ports(3)
    first_ingress = random.choice(INGRESS_PORTS)
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
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first_ingress + INGRESS_PORTS.step - 1),
    }


def _free_ports(count: int) -> list[int]:
    """Ports of loopback that nothing listens on now; another process may take one before Ray does."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
