"""The controller as a Ray Serve application of its own on the head node, so that Serve starts it anew when it dies.

The data path does not know of it. Import only where Ray's environment is settled.
"""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ray import serve
from ray.exceptions import RayError
from ray.serve.api import RunTarget

from ...deployments import discovery
from ...models.errors import StateError
from ..config import NfoldConfig
from ..observer import EMPTY_REPORT, Observer, Reading
from ..observer_app import HEAD, LOOK_S
from ..published import read_service
from .actuation import Actual
from .actuator import RayActuator, find_node_types
from .costs import Costs, costs_of
from .health import needs_probe
from .history import History, history_directory
from .latest import publish_costs, publish_latest
from .loop import Controller
from .probes import Prober
from .sight import Sight
from .snapshot import Memory, Snapshot

logger = logging.getLogger(__name__)


class LiveService:
    """The running service, read once a second and made a snapshot of when a decision is due.

    Attributes:
        costs: as of the latest snapshot; None where nodes have no prices.
    """

    def __init__(self, config: NfoldConfig) -> None:
        self._config = config
        self._observer = Observer(time.monotonic)
        self._sight = Sight(config, config.controller)
        self._reading, self._report = Reading(()), EMPTY_REPORT
        timeout_s = config.controller.health.probe_timeout_s
        self._prober = Prober(lambda: discovery.service_keys(config.name), timeout_s)
        self.costs: Costs | None = None

    def watch(self) -> None:
        """One look. Raises StateError when Ray's head does not answer."""
        try:
            self._reading = read_service(self._config)
        except (RayError, OSError) as error:
            raise StateError(f"Ray's head does not answer: {error}") from None
        self._report = self._observer.observe(self._reading)
        self._sight.watch(self._reading, self._report, time.monotonic())

    def look(self, actual: Actual, memory: Memory) -> Snapshot:
        results = self._prober.results
        snapshot = self._sight.snapshot(self._reading, self._report, actual, results, time.monotonic())
        out = {quarantine.replica_id for quarantine in memory.quarantine}
        health = self._config.controller.health
        due = [one.replica_id for one in snapshot.replicas if needs_probe(one, health, one.replica_id in out)]
        self._prober.probe([self._report.view.replicas[name].address for name in due])
        self._prober.forget(list(self._report.view.replicas))
        self.costs = costs_of(snapshot, self._config.controller)
        return snapshot

    def quarantine(self, replica_ids: Sequence[str]) -> None:
        try:
            discovery.quarantine(self._config.name, replica_ids)
        except (RayError, OSError) as error:
            raise StateError(f"Ray's head does not answer: {error}") from None


class ControllerReplica:
    """Looks every second, decides every `controller.tick_s`.

    Args:
        directory: of the history, on the head.

    Raises:
        StateError: the directory cannot be written.
        ConfigError: the autoscaler's YAML is wrong.
    """

    def __init__(self, config: NfoldConfig, directory: Path) -> None:
        self._config = config
        self._service = LiveService(config)
        actuator = RayActuator(config, find_node_types(config))
        self._controller = Controller(self._service, actuator, config.controller, History(directory), time.time)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nfold-controller", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Serve replaces the controller when this raises."""
        if not self._thread.is_alive():
            raise StateError("the controller's loop ended; its log tells why")

    def __del__(self) -> None:
        if hasattr(self, "_ended"):
            self._ended.set()

    def _run(self) -> None:
        due_s = time.monotonic() + self._config.controller.tick_s  # rates take two looks
        while not self._ended.wait(LOOK_S):
            try:
                self._service.watch()
                if time.monotonic() < due_s:
                    continue
                due_s = time.monotonic() + self._config.controller.tick_s
                decision = self._controller.tick()
                if decision is not None:
                    publish_latest(self._config.name, decision)
                if self._service.costs is not None:
                    publish_costs(self._config.name, self._service.costs)
            except (StateError, RayError, OSError) as error:
                logger.warning("this look failed; the next is in a second: %s", error)


def deploy_controller(config: NfoldConfig, home: Path) -> None:
    """Start the controller of a service. Returns at once. Serve must have been started."""
    deployment = serve.deployment(
        name="controller",
        ray_actor_options={"num_cpus": 0, "resources": HEAD},
        health_check_period_s=5.0,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=5.0,
        max_constructor_retry_count=3,
    )(ControllerReplica)
    controller = deployment.bind(config, history_directory(home, config.name))
    target = RunTarget(controller, application_name(config.name), route_prefix=None)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def remove_controller(service: str) -> None:
    """End it; its history stays. Does nothing if it is not running."""
    if application_name(service) in serve.status().applications:
        serve.delete(application_name(service))


def application_name(service: str) -> str:
    """Of the controller's Serve application."""
    return f"{service}-controller"
