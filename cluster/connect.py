"""Makes this process a quiet driver of a Ray cluster. Ray is imported inside, after its environment is set: Ray and
Serve read most of it once, when they are imported."""

import logging
import os
import socket
from collections.abc import Mapping

from ..models.errors import StateError

CONNECT_TIMEOUT_S = 5.0


def apply_environment(environment: Mapping[str, str]) -> None:
    """Take over what Ray must find; call it before anything imports Ray."""
    os.environ.update(environment)


def connect(address: str, environment: Mapping[str, str]) -> None:
    """Join the Ray cluster at `address` (`auto` or host:port), saying nothing on the terminal. Once is enough.

    Raises:
        StateError: no cluster answers there, or it refuses this process.
    """
    apply_environment(environment)
    import ray

    if ray.is_initialized():
        return
    if address != "auto":
        _check_reachable(address)
    from ray.exceptions import RayError

    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, namespace="serve")
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise StateError(
            f"cannot join the Ray cluster at {address}: {error}. Where it has RAY_AUTH_MODE=token, that must be "
            "set here, too, with the same token (RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token)"
        ) from None
    from ray.serve._private.constants import SERVE_LOGGER_NAME  # Serve sets its logger's level when imported

    logging.getLogger(SERVE_LOGGER_NAME).setLevel(logging.ERROR)


def disconnect() -> None:
    """Leave the cluster, if it was joined."""
    import ray

    ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise StateError(f"no Ray cluster answers at {address}: {reason}") from None
