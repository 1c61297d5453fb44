"""Ray's node provider for a plain list of hosts reached over ssh: `type: external` in the autoscaler's YAML.

Ray's own `local` provider knows one kind of node without resources, so no demand for accelerators can bring in a
host. Here each host has a node type. Runs in the process of Ray's autoscaler (v2) on the head; `ray up` and
`ray down` use it on the launching machine to reach the head.
"""

import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_LAUNCH_REQUEST,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)
from ray.exceptions import RayError

from ...models.settings import Settings
from .autoscaling import NODE_TYPE_LABEL
from .failures import HostFailure, forget_failure, publish_failure
from .host_book import Host, HostBook, HostState
from .host_starter import HostStarter
from .hosts_config import HostsConfig, hosts_config
from .shell import Ssh

logger = logging.getLogger(__name__)

Tags = dict[str, str]
GCS_TIMEOUT_S = 10


class ListedHosts(NodeProvider):
    """Node ids are the hosts' instance ids; the head's is its address.

    Args:
        provider_config: see `HostsConfig`, and `launcher`: whether this is the machine that runs `ray up`.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._config = hosts_config(provider_config)
        self._is_launcher = bool(provider_config.get("launcher", False))
        folder = Settings.from_environment().home / "hosts"
        self._head_file = folder / f"{cluster_name}-head.json"
        self._book = HostBook(folder / f"{cluster_name}.json", self._config.hosts, time.time)
        shell = Ssh(self._config.ssh_user, self._config.key_path, self._config.ssh_port)
        self._starter = HostStarter(self._config, self._book, shell, RayCluster(self._config), _spawn)
        if not self._is_launcher:
            self._starter.resume()

    def non_terminated_nodes(self, tag_filters: Tags) -> list[str]:
        return [name for name, own in self._all_tags().items() if tag_filters.items() <= own.items()]

    def is_running(self, node_id: str) -> bool:
        if node_id == self._config.head_ip:
            return node_id in self._all_tags()
        host = self._book.find(node_id)
        return host is not None and host.state == HostState.RUNNING

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._all_tags()

    def node_tags(self, node_id: str) -> Tags:
        return self._all_tags().get(node_id, {})  # none: it went since it was listed

    def external_ip(self, node_id: str) -> str:
        return self.internal_ip(node_id)

    def internal_ip(self, node_id: str) -> str:
        host = self._book.find(node_id)
        return socket.gethostbyname(host.host if host else self._config.head_ip)

    def set_node_tags(self, node_id: str, tags: Tags) -> None:
        """`ray up` marks the head; hosts' tags follow from their state."""
        if node_id == self._config.head_ip and self._is_launcher:
            self._write_head_tags(self._head_tags() | tags)

    def create_node(self, node_config: dict[str, Any], tags: Tags, count: int) -> None:
        """The head, by `ray up`, which then starts Ray there itself."""
        assert tags[TAG_RAY_NODE_KIND] == NODE_KIND_HEAD, "the autoscaler creates workers with resources"
        self._write_head_tags(tags)

    def create_node_with_resources_and_labels(
        self, node_config: dict[str, Any], tags: Tags, count: int, resources: dict[str, float], labels: Tags
    ) -> None:
        """Raises HostError: not so many hosts answer; those before stay."""
        for _ in range(count):
            request_id = tags.get(TAG_RAY_LAUNCH_REQUEST, "")
            self._starter.launch(tags[TAG_RAY_USER_NODE_TYPE], request_id, resources, labels)

    def terminate_node(self, node_id: str) -> None:
        """Returns at once; the host is free again when Ray has ended there."""
        if node_id == self._config.head_ip:
            self._head_file.unlink(missing_ok=True)
        else:
            self._starter.terminate(node_id)

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """What `ray up` and its like make of the YAML on the launching machine: hosts are set up as workers."""
        provider, auth = cluster_config["provider"], cluster_config.get("auth") or {}
        provider.setdefault("launcher", True)
        provider.setdefault("disable_node_updaters", True)
        defaults = {
            "head_type": cluster_config["head_node_type"],
            "ssh_user": auth.get("ssh_user"),
            "copy_paths": list(cluster_config.get("file_mounts") or {}),
            "setup_commands": cluster_config.get("worker_setup_commands"),
            "start_commands": cluster_config.get("worker_start_ray_commands"),
        }
        for name, value in defaults.items():
            if value:
                provider.setdefault(name, value)
        for name, entry in cluster_config["available_node_types"].items():
            entry["labels"] = {**(entry.get("labels") or {}), NODE_TYPE_LABEL: name}
        return cluster_config

    def prepare_for_head_node(self, cluster_config: dict[str, Any]) -> dict[str, Any]:
        cluster_config["provider"]["launcher"] = False
        return cluster_config

    def _all_tags(self) -> dict[str, Tags]:
        head = self._head_tags()
        hosts = {
            host.instance_id: _tags(host.host, host.node_type, NODE_KIND_WORKER, host.request_id)
            for host in self._book.hosts
            if host.instance_id
        }
        return ({self._config.head_ip: head} if head else {}) | hosts

    def _head_tags(self) -> Tags:
        """Where the autoscaler runs, the head runs; the launching machine remembers what it started."""
        if not self._is_launcher:
            return _tags(self._config.head_ip, self._config.head_type, NODE_KIND_HEAD, "")
        return json.loads(self._head_file.read_text()) if self._head_file.exists() else {}

    def _write_head_tags(self, tags: Tags) -> None:
        self._head_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._head_file.write_text(json.dumps(tags))


class RayCluster:
    """The Ray cluster as the host starter sees it. It connects when first asked: Ray's head may start later."""

    def __init__(self, config: HostsConfig) -> None:
        self._address = f"{config.head_ip}:{config.head_port}"
        self._client: Any = None

    def has_joined(self, instance_id: str) -> bool:
        try:
            infos = self._gcs().get_all_node_info(timeout=GCS_TIMEOUT_S).values()
        except RayError as error:
            logger.warning("the head at %s does not answer: %s", self._address, error)
            return False
        return any(info.instance_id == instance_id and info.state == info.ALIVE for info in infos)

    def tell_failure(self, host: Host) -> None:
        retry_s = max(0.0, host.retry_at_s - time.time())
        failure = HostFailure(
            host=host.host,
            node_type=host.node_type,
            at_s=time.time(),
            reason=f"{host.reason}; tried again in {retry_s:.0f} s at the earliest",
            retry_at_s=host.retry_at_s,
        )
        self._try(lambda: publish_failure(self._gcs(), failure))

    def tell_joined(self, host: Host) -> None:
        self._try(lambda: forget_failure(self._gcs(), host.host))

    def _gcs(self) -> Any:
        if self._client is None:
            self._client = GcsClient(address=self._address)
        return self._client

    def _try(self, tell: Callable[[], object]) -> None:
        try:
            tell()
        except RayError as error:  # the log has it, too
            logger.warning("cannot tell the cluster of a host: %s", error)


def _spawn(function: Callable[[], None]) -> None:
    """`ray down` ends when all such threads have."""
    threading.Thread(target=function, name="nfold-host", daemon=False).start()


def _tags(name: str, node_type: str, kind: str, request_id: str) -> Tags:
    return {
        TAG_RAY_NODE_KIND: kind,
        TAG_RAY_USER_NODE_TYPE: node_type,
        TAG_RAY_NODE_NAME: name,
        TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
        TAG_RAY_LAUNCH_REQUEST: request_id,
    }
