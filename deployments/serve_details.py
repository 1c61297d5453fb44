"""What Serve's controller says of a service, in the words of Serve's REST API. Needs a connected process.

It is asked directly, for those who look every second: `serve.status()` builds each deployment's configuration anew
on the way and pickles a router class for it, a hundred times as much work.
"""

from typing import Any, cast

import ray
from ray.serve.context import _get_global_client

from ..models.errors import StateError

TIMEOUT_S = 10.0

Deployments = dict[str, dict[str, Any]]


def deployments_of(service: str) -> Deployments:
    """Each deployment of a service, by name.

    Raises:
        StateError: the service is not running.
        RayError: Serve's controller does not answer.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        raise StateError("Ray Serve is not running on this cluster")
    details = cast(
        dict[str, Any], ray.get(client._controller.get_serve_instance_details.remote(), timeout=TIMEOUT_S)
    )
    application = details["applications"].get(service)
    if application is None:
        raise StateError(f"service {service!r} is not running on this cluster")
    return application["deployments"]
