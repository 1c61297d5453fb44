"""Which listed host is what to the cluster, kept in a file so that the autoscaler may restart at any moment.

free ──claim──> starting ──> running ──> stopping ──> free
  ^                │            │            │
  └── back-off <───┴────────────┴────────────┘   when the host fails: 30 s, 60 s, ... 15 min
"""

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

FIRST_BACK_OFF_S = 30.0
LONGEST_BACK_OFF_S = 900.0


class HostState(StrEnum):
    FREE = "free"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Host:
    """
    Attributes:
        instance_id: while starting or running; never used again, as the autoscaler takes what Ray remembers of a
            dead node for the living one of the same id.
        request_id: the autoscaler's, of the launch.
        num_failures: since it was last running.
        retry_at_s: it is not claimed before, Unix time.
        reason: why it failed last.
    """

    host: str
    node_type: str
    state: HostState = HostState.FREE
    instance_id: str = ""
    request_id: str = ""
    num_failures: int = 0
    retry_at_s: float = 0.0
    reason: str = ""


class HostBook:
    """Thread-safe. Every change is in the file before it is told.

    Args:
        hosts: by node type, in order of preference.
        clock: Unix time, seconds.
    """

    def __init__(self, path: Path, hosts: Mapping[str, tuple[str, ...]], clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        kept = _read(path)
        listed = {host: node_type for node_type, names in hosts.items() for host in names}
        self._hosts = {host: Host(host, node_type) for host, node_type in listed.items()}
        for host, before in kept.items():
            # One that is listed no more stays as long as it is in use.
            if host in listed or before.state != HostState.FREE:
                self._hosts[host] = replace(before, node_type=listed.get(host, before.node_type))

    @property
    def hosts(self) -> tuple[Host, ...]:
        with self._lock:
            return tuple(self._hosts.values())

    def find(self, instance_id: str) -> Host | None:
        return next((host for host in self.hosts if host.instance_id == instance_id), None)

    def claim(self, node_type: str, request_id: str) -> Host | None:
        """A free host of the type that is not in back-off, those that failed least first; None when none is."""
        now_s = self._clock()
        with self._lock:
            free = [
                host
                for host in self._hosts.values()
                if host.node_type == node_type and host.state == HostState.FREE and host.retry_at_s <= now_s
            ]
            if not free:
                return None
            chosen = min(free, key=lambda host: host.num_failures)
            instance_id = f"{chosen.host}-{secrets.token_hex(4)}"
            return self._put(
                replace(chosen, state=HostState.STARTING, instance_id=instance_id, request_id=request_id)
            )

    def running(self, host: Host) -> None:
        with self._lock:
            self._put(replace(host, state=HostState.RUNNING, num_failures=0, retry_at_s=0.0, reason=""))

    def stopping(self, host: Host) -> Host:
        """To the autoscaler it is gone from now on."""
        with self._lock:
            return self._put(replace(host, state=HostState.STOPPING, instance_id="", request_id=""))

    def free(self, host: Host) -> None:
        with self._lock:
            self._put(replace(host, state=HostState.FREE, instance_id="", request_id=""))

    def failed(self, host: Host, reason: str) -> Host:
        """It is free again, but not tried for a while, each time twice as long."""
        back_off_s = min(FIRST_BACK_OFF_S * 2**host.num_failures, LONGEST_BACK_OFF_S)
        with self._lock:
            return self._put(
                replace(
                    host,
                    state=HostState.FREE,
                    instance_id="",
                    request_id="",
                    num_failures=host.num_failures + 1,
                    retry_at_s=self._clock() + back_off_s,
                    reason=reason,
                )
            )

    def _put(self, host: Host) -> Host:
        self._hosts[host.host] = host
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".tmp")
        fresh.write_text(json.dumps([asdict(each) for each in self._hosts.values()], indent=1))
        fresh.replace(self._path)
        return host


def _read(path: Path) -> dict[str, Host]:
    if not path.exists():
        return {}
    entries = json.loads(path.read_text())
    return {entry["host"]: Host(**entry | {"state": HostState(entry["state"])}) for entry in entries}
