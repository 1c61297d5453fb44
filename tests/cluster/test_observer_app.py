"""The observer inside Ray: it reads what gateways publish, and Serve starts it anew when it dies."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import msgspec
import pytest
import ray
from fake_service import MODEL, FakeRouter, baseline, two_nodes
from nfold.cluster.observer_app import application_name, deploy_observer, remove_observer, wait_observer
from nfold.cluster.published import publish_baseline, published_baselines
from nfold.deployments import discovery
from nfold.deployments.config import HttpConfig, MetricsConfig, ServedModelConfig, ServiceConfig
from nfold.models.errors import StateError
from ray import serve
from ray._private.state import actors
from ray_cluster import local_ray

pytestmark = pytest.mark.cluster

PATIENCE_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def config() -> Iterator[ServiceConfig]:
    http = HttpConfig(port=free_port())
    config = ServiceConfig(
        http=http, metrics=MetricsConfig(port=free_port()), models=[ServedModelConfig(name=MODEL)]
    )
    with local_ray([{"num_cpus": 1}], http):
        serve.start(http_options={"host": http.host, "port": http.port})
        deploy_observer(config)
        wait_observer(config)
        yield config
        serve.shutdown()


def status(config: ServiceConfig) -> dict[str, Any]:
    with urlopen(f"http://127.0.0.1:{config.metrics.port}/status.json", timeout=10) as answer:
        return json.load(answer)


def status_when(config: ServiceConfig, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The first status that `condition` holds for."""
    deadline = time.monotonic() + PATIENCE_S
    seen: object = None
    while time.monotonic() < deadline:
        try:
            seen = status(config)
            if condition(seen):
                return seen
        except (URLError, ConnectionError) as error:
            seen = error
        time.sleep(0.1)
    pytest.fail(f"not within {PATIENCE_S:.0f} s; last seen: {seen}")


def publish(config: ServiceConfig, now: float) -> None:
    snapshot = FakeRouter("gateway-1", two_nodes(), num_finished=5).snapshot(now)
    discovery.publish_gateway(config.name, "gateway-1", msgspec.msgpack.encode(snapshot))


def test_it_reads_what_is_published(config: ServiceConfig) -> None:
    publish_baseline(config.name, baseline(100.0))
    publish(config, 100.0)
    status_when(config, lambda seen: MODEL in seen["models"])
    publish(config, 110.0)
    seen = status_when(config, lambda seen: (seen["models"].get(MODEL) or {}).get("ledger"))
    assert {replica["replica"] for replica in seen["models"][MODEL]["replicas"]} == {"replica-0", "replica-1"}
    assert seen["models"][MODEL]["requests"]["finished"] == 5
    assert 0 < seen["models"][MODEL]["ledger"]["baseline"] <= 200.0


def test_a_newer_baseline_replaces_the_published_one(config: ServiceConfig) -> None:
    publish_baseline(config.name, baseline(100.0))
    publish_baseline(config.name, baseline(120.0))
    assert [each.tokens_per_s for each in published_baselines(config.name)] == [120.0]


def test_serve_starts_it_anew_when_it_dies(config: ServiceConfig) -> None:
    def observers() -> list[dict[str, Any]]:
        return [
            actor
            for actor in actors().values()
            if "ObserverReplica" in actor["ActorClassName"] or "observer" in actor["Name"]
        ]

    pid = next(actor["Pid"] for actor in observers() if actor["State"] == "ALIVE")
    assert pid != os.getpid()
    os.kill(pid, signal.SIGKILL)
    publish(config, 200.0)
    status_when(config, lambda seen: MODEL in seen["models"])
    assert any(actor["State"] == "ALIVE" and actor["Pid"] != pid for actor in observers())


def test_a_taken_port_is_told(config: ServiceConfig) -> None:
    other = config.model_copy(update={"name": "other"})
    deploy_observer(other)
    with pytest.raises(StateError, match=f"cannot listen on 127.0.0.1:{config.metrics.port}"):
        wait_observer(other)
    remove_observer("other")


def test_it_can_be_removed(config: ServiceConfig) -> None:
    remove_observer(config.name)
    remove_observer(config.name)
    assert application_name(config.name) not in serve.status().applications
    with pytest.raises((URLError, ConnectionError)):
        status(config)
    assert ray.is_initialized()
