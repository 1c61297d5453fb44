"""Brings listed hosts into the cluster and out of it: the steps on a host, and what happens when one fails."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from ...models.errors import HostError
from .host_book import Host, HostBook, HostState
from .hosts_config import HostsConfig
from .shell import Shell

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 60.0
# A launch that finds all hosts in back-off waits so long for one, lest the autoscaler asks anew every few seconds.
PATIENCE_S = 20.0
POLL_S = 0.5

# What `ray start` finds out by itself; told by us it would be believed, broken or not.
DETECTED = ("CPU", "GPU", "memory", "object_store_memory")


class Cluster(Protocol):
    """What a starter sees and tells of the Ray cluster."""

    def has_joined(self, instance_id: str) -> bool: ...

    def tell_failure(self, host: Host) -> None:
        """Its reason, and when it is tried again."""
        ...

    def tell_joined(self, host: Host) -> None: ...


class HostStarter:
    """
    Args:
        spawn: runs a function beside this thread.
    """

    def __init__(
        self,
        config: HostsConfig,
        book: HostBook,
        shell: Shell,
        cluster: Cluster,
        spawn: Callable[[Callable[[], None]], None],
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config = config
        self._book = book
        self._shell = shell
        self._cluster = cluster
        self._spawn = spawn
        self._clock = clock
        self._sleep = sleep

    def resume(self) -> None:
        """Finish what was under way when the autoscaler ended: what has not joined by now is stopped."""
        for host in self._book.hosts:
            if host.state == HostState.STARTING and self._cluster.has_joined(host.instance_id):
                self._book.running(host)
            elif host.state in (HostState.STARTING, HostState.STOPPING):
                self._stop_beside(self._book.stopping(host))

    def launch(
        self, node_type: str, request_id: str, resources: Mapping[str, float], labels: Mapping[str, str]
    ) -> Host:
        """Start the next host of this type that answers; it joins later.

        Raises:
            HostError: none answers now; says why, and when the next is tried.
        """
        give_up_at = self._clock() + PATIENCE_S
        while True:
            host = self._book.claim(node_type, request_id)
            if host is None:
                if self._clock() >= give_up_at:
                    raise HostError(self._none_left(node_type))
                self._sleep(POLL_S)
                continue
            try:
                self._shell.run(host.host, "true", PROBE_TIMEOUT_S)
            except HostError as error:
                self._fail(host, str(error))
                continue
            self._start_beside(host, resources, labels)
            return host

    def terminate(self, instance_id: str) -> None:
        """End Ray on the host; does nothing for one that is gone."""
        host = self._book.find(instance_id)
        if host is not None:
            self._stop_beside(self._book.stopping(host))

    def _start_beside(self, host: Host, resources: Mapping[str, float], labels: Mapping[str, str]) -> None:
        self._spawn(lambda: self._start(host, resources, labels))

    def _start(self, host: Host, resources: Mapping[str, float], labels: Mapping[str, str]) -> None:
        config, environment = self._config, self._environment(host, resources, labels)
        try:
            self._shell.copy(host.host, config.copy_paths, config.setup_timeout_s)
            for command in config.setup_commands:
                self._shell.run(host.host, command, config.setup_timeout_s, environment)
            for command in config.start_commands:
                self._shell.run(host.host, command, config.start_timeout_s, environment)
            self._await_join(host)
        except HostError as error:
            if self._is_current(host):
                self._fail(host, str(error))
            return
        if self._is_current(host):
            self._book.running(host)
            self._cluster.tell_joined(host)
            logger.info("host %s has joined as %s", host.host, host.instance_id)

    def _environment(self, host: Host, resources: Mapping[str, float], labels: Mapping[str, str]) -> dict[str, str]:
        told = {
            name: amount
            for name, amount in resources.items()
            if name not in DETECTED and not name.startswith("accelerator_type:")
        }
        return {
            "RAY_HEAD_IP": self._config.head_ip,
            "RAY_CLOUD_INSTANCE_ID": host.instance_id,
            "RAY_NODE_TYPE_NAME": host.node_type,
            "RAY_OVERRIDE_LABELS": json.dumps(dict(labels)),
            "RAY_OVERRIDE_RESOURCES": json.dumps(told),
        }

    def _await_join(self, host: Host) -> None:
        give_up_at = self._clock() + self._config.start_timeout_s
        while not self._cluster.has_joined(host.instance_id):
            if self._clock() > give_up_at:
                raise HostError(
                    f"host {host.host} started Ray but did not join within {self._config.start_timeout_s:g} s; can "
                    f"it reach {self._config.head_ip}:{self._config.head_port}, and has it the cluster's token?"
                )
            self._sleep(POLL_S)

    def _is_current(self, host: Host) -> bool:
        """Not when it was terminated while it started."""
        return self._book.find(host.instance_id) is not None

    def _stop_beside(self, host: Host) -> None:
        self._spawn(lambda: self._stop(host))

    def _stop(self, host: Host) -> None:
        try:
            self._shell.run(host.host, self._config.stop_command, STOP_TIMEOUT_S)
        except HostError as error:
            self._fail(host, str(error))
            return
        self._book.free(host)
        logger.info("host %s has left", host.host)

    def _fail(self, host: Host, reason: str) -> None:
        failed = self._book.failed(host, reason)
        logger.warning("%s; tried again in %.0f s", reason, failed.retry_at_s - self._clock())
        self._cluster.tell_failure(failed)

    def _none_left(self, node_type: str) -> str:
        hosts = [host for host in self._book.hosts if host.node_type == node_type]
        if not hosts:
            return f"no hosts are listed for node type {node_type}; add some to provider.hosts.{node_type}"
        waiting = [host.reason for host in hosts if host.reason]
        return f"no host of node type {node_type} can be started now: " + ("; ".join(waiting) or "all are in use")
