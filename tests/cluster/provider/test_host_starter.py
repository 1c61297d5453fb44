"""Listed hosts come and go: one that does not answer is passed over and tried again, and restarts lose nothing."""

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from nfold.cluster.provider.host_book import Host, HostBook, HostState
from nfold.cluster.provider.host_starter import HostStarter
from nfold.cluster.provider.hosts_config import HostsConfig, hosts_config
from nfold.models.errors import ConfigError, HostError

CONFIG = HostsConfig(
    head_ip="10.0.0.1",
    head_type="head",
    ssh_user="me",
    hosts={"big": ("a", "b"), "small": ("c",)},
    copy_paths=("~/nfold",),
    setup_commands=("set up",),
    start_commands=("ray start",),
    stop_command="ray stop",
)
RESOURCES = {"CPU": 8.0, "GPU": 8.0, "accelerator_type:X": 1.0, "rack-a": 1.0}


class Rig:
    """Hosts, cluster and clock that do as told. Threads wait until `run` lets them."""

    def __init__(self, path: Path) -> None:
        self.path = path / "hosts.json"
        self.now_s = 1000.0
        self.done: list[tuple[str, str]] = []
        self.environments: list[Mapping[str, str]] = []
        self.fails: dict[tuple[str, str], str] = {}
        self.joined: set[str] = set()
        self.joins = True
        self.failures: list[Host] = []
        self.tasks: deque[Callable[[], None]] = deque()
        self.restart()

    def restart(self) -> None:
        """Of the autoscaler: what was to be done beside is lost."""
        self.tasks.clear()
        self.book = HostBook(self.path, CONFIG.hosts, lambda: self.now_s)
        self.starter = HostStarter(
            CONFIG, self.book, self, self, self.tasks.append, lambda: self.now_s, self._sleep
        )

    def launch(self, node_type: str = "big") -> Host:
        return self.starter.launch(node_type, "request", RESOURCES, {"rack": "r1"})

    def run_tasks(self) -> None:
        while self.tasks:
            self.tasks.popleft()()

    def states(self) -> dict[str, str]:
        return {host.host: host.state.value for host in self.book.hosts}

    def run(self, host: str, command: str, timeout_s: float, environment: Mapping[str, str] | None = None) -> str:
        self.done.append((host, command))
        if reason := self.fails.get((host, command)):
            raise HostError(reason)
        if command == "ray start":
            assert environment is not None
            self.environments.append(environment)
            if self.joins:
                self.joined.add(environment["RAY_CLOUD_INSTANCE_ID"])
        return ""

    def copy(self, host: str, paths: Sequence[str], timeout_s: float) -> None:
        self.done.append((host, f"copy {' '.join(paths)}"))

    def has_joined(self, instance_id: str) -> bool:
        return instance_id in self.joined

    def tell_failure(self, host: Host) -> None:
        self.failures.append(host)

    def tell_joined(self, host: Host) -> None:
        self.failures = [failure for failure in self.failures if failure.host != host.host]

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_host_is_set_up_started_and_stopped(rig: Rig) -> None:
    host = rig.launch()
    assert rig.states() == {"a": "starting", "b": "free", "c": "free"}
    rig.run_tasks()
    assert [command for _, command in rig.done] == ["true", "copy ~/nfold", "set up", "ray start"]
    assert rig.states()["a"] == "running"
    rig.starter.terminate(host.instance_id)
    assert rig.book.find(host.instance_id) is None, "gone for the autoscaler at once"
    assert rig.states()["a"] == "stopping", "but not free"
    rig.run_tasks()
    assert rig.done[-1] == ("a", "ray stop")
    assert rig.states()["a"] == "free"


def test_ray_counts_the_accelerators_itself(rig: Rig) -> None:
    host = rig.launch()
    rig.run_tasks()
    environment = rig.environments[0]
    assert json.loads(environment["RAY_OVERRIDE_RESOURCES"]) == {"rack-a": 1.0}
    assert json.loads(environment["RAY_OVERRIDE_LABELS"]) == {"rack": "r1"}
    assert environment["RAY_HEAD_IP"] == "10.0.0.1"
    assert environment["RAY_CLOUD_INSTANCE_ID"] == host.instance_id
    assert environment["RAY_NODE_TYPE_NAME"] == "big"


def test_a_silent_host_is_passed_over_and_tried_again_later(rig: Rig) -> None:
    rig.fails["a", "true"] = "host a does not answer over ssh: timed out"
    assert rig.launch().host == "b"
    rig.run_tasks()
    assert [failure.host for failure in rig.failures] == ["a"]
    rig.now_s += 29
    with pytest.raises(HostError, match="host a does not answer"):
        rig.launch()  # after 30 s it is tried again, in vain
    assert rig.done.count(("a", "true")) == 2
    assert rig.failures[-1].num_failures == 2
    assert rig.failures[-1].retry_at_s == 1090, "twice as long after the second time"
    del rig.fails["a", "true"]
    rig.now_s += 60
    assert rig.launch().host == "a"
    rig.run_tasks()
    assert rig.failures == [], "forgotten when it joined"


def test_back_off_is_bounded(rig: Rig) -> None:
    rig.fails["c", "true"] = "no"
    for _ in range(12):
        rig.now_s += 1000
        with pytest.raises(HostError):
            rig.launch("small")
    (host,) = (host for host in rig.book.hosts if host.host == "c")
    assert host.retry_at_s <= rig.now_s + 900


def test_one_that_fails_in_the_middle_goes_and_the_next_comes(rig: Rig) -> None:
    rig.fails["a", "set up"] = "host a: `set up` failed with status 1: no space left"
    host = rig.launch()
    rig.run_tasks()
    assert rig.book.find(host.instance_id) is None, "the autoscaler will launch another"
    assert "no space left" in rig.failures[0].reason
    assert rig.launch().host == "b"


def test_one_that_never_joins_has_failed(rig: Rig) -> None:
    rig.joins = False
    rig.launch()
    rig.run_tasks()
    assert "did not join within 120 s" in rig.failures[0].reason
    assert rig.states()["a"] == "free"


def test_terminated_while_it_starts_it_stays_gone(rig: Rig) -> None:
    host = rig.launch()
    rig.starter.terminate(host.instance_id)
    rig.run_tasks()
    assert rig.states()["a"] == "free"
    assert rig.failures == []


def test_a_dead_host_is_let_go(rig: Rig) -> None:
    host = rig.launch()
    rig.run_tasks()
    rig.fails["a", "ray stop"] = "host a does not answer over ssh"
    rig.starter.terminate(host.instance_id)
    rig.run_tasks()
    assert rig.states()["a"] == "free"
    assert rig.launch().host == "b", "it is in back-off"


@pytest.mark.parametrize("joined", [True, False])
def test_a_restart_goes_on(rig: Rig, joined: bool) -> None:
    running = rig.launch()
    rig.run_tasks()
    starting = rig.launch()
    if joined:
        rig.joined.add(starting.instance_id)
    rig.restart()
    rig.starter.resume()
    rig.run_tasks()
    assert rig.book.find(running.instance_id) is not None
    assert (rig.book.find(starting.instance_id) is not None) == joined
    assert (("b", "ray stop") in rig.done) != joined


def test_instance_ids_are_never_used_again(rig: Rig) -> None:
    ids: set[str] = set()
    for _ in range(3):
        host = rig.launch("small")
        rig.run_tasks()
        ids.add(host.instance_id)
        rig.starter.terminate(host.instance_id)
        rig.run_tasks()
    assert len(ids) == 3


def test_no_listed_host_is_named(rig: Rig) -> None:
    with pytest.raises(HostError, match=r"add some to provider\.hosts\.huge"):
        rig.launch("huge")
    rig.launch("small")
    with pytest.raises(HostError, match="all are in use"):
        rig.launch("small")


def test_hosts_taken_from_the_list_stay_while_in_use(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    book = HostBook(path, {"big": ("a", "b")}, lambda: 0.0)
    host = book.claim("big", "")
    assert host is not None
    shorter = HostBook(path, {"big": ("b",)}, lambda: 0.0)
    assert {each.host: each.state for each in shorter.hosts} == {"a": HostState.STARTING, "b": HostState.FREE}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"hosts": {}, "ssh_user": "me"}, r"provider\.head_ip: got 'nothing'"),
        (
            {"head_ip": "h", "head_type": "t", "hosts": {"x": ["a"], "y": ["a"]}, "ssh_user": "me"},
            "one node type; a stands twice",
        ),
        ({"head_ip": "h", "head_type": "t", "hosts": {}, "ssh_user": "me", "ssh_port": 0}, r"provider\.ssh_port"),
    ],
)
def test_a_wrong_section_names_its_field(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        hosts_config(fields)
