"""The observer as a Ray Serve application of its own on the head node, so that Serve starts it anew when it dies.

Import only where Ray's environment is settled.
"""

import logging
import threading
import time

from ray import serve
from ray.exceptions import RayError
from ray.serve.api import RunTarget
from ray.serve.schema import ApplicationStatus

from ..deployments.config import ServiceConfig
from ..models.errors import StateError
from .http_endpoint import HttpEndpoint
from .observer import EMPTY_REPORT, Observer, ServiceReport
from .published import read_service

logger = logging.getLogger(__name__)

LOOK_S = 1.0
POLL_S = 0.25
# Looks fail while Ray's head restarts; after so long without one, Serve replaces the observer.
BLIND_S = 30.0
HEAD = {"node:__internal_head__": 0.001}


class ObserverReplica:
    """Looks at the service of `config` once a second and serves what it sees on the metrics endpoint.

    Raises:
        StateError: the endpoint's port is taken.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        metrics, simulated = config.metrics, {model.name for model in config.models if model.simulated}
        self._report = EMPTY_REPORT
        self._looked_s = time.monotonic()
        self._ended = threading.Event()
        self._endpoint = HttpEndpoint(self._latest, metrics.host, metrics.port, simulated)
        self._thread = threading.Thread(target=self._look_for_ever, name="nfold-observer", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Serve replaces the observer when this raises."""
        if not self._thread.is_alive():
            raise StateError("the observer's loop ended; its log tells why")
        if time.monotonic() - self._looked_s > BLIND_S:
            raise StateError(f"the observer has not seen the service for {BLIND_S:g} s")

    def __del__(self) -> None:
        if hasattr(self, "_thread"):
            self._ended.set()
            self._endpoint.close()

    def _latest(self) -> ServiceReport:
        return self._report

    def _look_for_ever(self) -> None:
        observer = Observer(time.monotonic)
        while not self._ended.is_set():
            try:
                self._report = observer.observe(read_service(self._config))
                self._looked_s = time.monotonic()
            except (RayError, OSError) as error:
                logger.warning("the head does not answer; showing what was seen last: %s", error)
            self._ended.wait(LOOK_S)


def deploy_observer(config: ServiceConfig) -> None:
    """Start the observer of a service. Returns at once; `wait_observer` waits. Serve must have been started."""
    deployment = serve.deployment(
        name="observer",
        ray_actor_options={"num_cpus": 0, "resources": HEAD},
        health_check_period_s=5.0,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=5.0,
        max_constructor_retry_count=3,
    )(ObserverReplica)
    observer = deployment.bind(config)
    target = RunTarget(observer, application_name(config.name), route_prefix=None)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def wait_observer(config: ServiceConfig, timeout_s: float = 60.0) -> None:
    """Wait until the endpoint of a deployed observer listens.

    Raises:
        StateError: it cannot start (Serve's words), or did not in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        application = serve.status().applications.get(application_name(config.name))
        status = application.status if application else ApplicationStatus.NOT_STARTED
        if status == ApplicationStatus.RUNNING:
            return
        deployments = application.deployments.values() if application else ()
        problem = "; ".join(deployment.message for deployment in deployments if deployment.message)
        if status == ApplicationStatus.DEPLOY_FAILED:
            raise StateError(f"the observer of service {config.name!r} cannot start: {problem}")
        if time.monotonic() > deadline:
            raise StateError(
                f"the observer of service {config.name!r} is {status} after {timeout_s:g} s: {problem}"
            )
        time.sleep(POLL_S)


def remove_observer(service: str) -> None:
    """End it. Does nothing if it is not running."""
    if application_name(service) in serve.status().applications:
        serve.delete(application_name(service))


def application_name(service: str) -> str:
    """Of the observer's Serve application."""
    return f"{service}-observer"
