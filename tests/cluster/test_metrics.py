"""What Prometheus gets: names, labels and values, over real HTTP."""

import json
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from fake_service import MODEL, NODE_NAMES, POOL, FakeReplica, FakeRouter, baseline, two_nodes
from nfold.cluster.controller.costs import Cost, Costs
from nfold.cluster.http_endpoint import HttpEndpoint
from nfold.cluster.ledger import COLUMNS, UNEXPLAINED
from nfold.cluster.metrics import COUNTERS
from nfold.cluster.observer import EMPTY_REPORT, Observer, Reading, ServiceReport
from nfold.cluster.provisioned import PoolTarget
from nfold.models.errors import StateError
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

TARGETS = {POOL: PoolTarget(MODEL, "CPU", 1, num_wanted=2, num_starting=0)}


COSTS = Costs(
    time_s=1.0, currency="USD", models={MODEL: Cost(tokens=9.0, idle=3.0, over_provisioned=6.0, tokens_per_s=200.0)}
)


def report_of(
    replicas: list[FakeReplica], num_looks: int = 5, costs: Costs | None = COSTS, look_s: float = 1.0
) -> ServiceReport:
    now_s = 100.0
    observer = Observer(lambda: now_s)
    router = FakeRouter("r", replicas, num_queued=3, num_finished=40, ttft_counts=(4, 3, 2, 1))
    report = EMPTY_REPORT
    for _ in range(num_looks):
        now_s += look_s
        reading = Reading([router.snapshot(now_s)], NODE_NAMES, [baseline(110.0)], TARGETS, costs=costs)
        report = observer.observe(reading)
    return report


@pytest.fixture(scope="module")
def endpoint() -> Iterator[HttpEndpoint]:
    replicas = [*two_nodes(), FakeReplica("replica-2", "b" * 56, alive=False)]
    report = report_of(replicas)
    server = HttpEndpoint(lambda: report, "127.0.0.1", 0)
    yield server
    server.close()


@pytest.fixture(scope="module")
def samples(endpoint: HttpEndpoint) -> list[Sample]:
    with urlopen(endpoint.url + "/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(samples: list[Sample], name: str, **labels: str) -> float:
    found = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
    assert len(found) == 1, f"{name} {labels}: {found}"
    return found[0]


def test_tokens_carry_all_five_labels(samples: list[Sample]) -> None:
    labels = {"model": MODEL, "pool": POOL, "node": "node-0", "replica": "replica-0", "accelerator": "CPU"}
    assert value(samples, "nfold_output_tokens_total", **labels) == 10_500
    assert value(samples, "nfold_prompt_tokens_total", **labels) == 21_000
    assert value(samples, "nfold_requests_running", **labels) == 8
    assert value(samples, "nfold_kv_blocks", **labels) == 100
    assert value(samples, "nfold_kv_blocks_used", **labels) == 25


def test_what_is_simulated_says_so() -> None:
    report = report_of(two_nodes())
    server = HttpEndpoint(lambda: report, "127.0.0.1", 0, simulated=[MODEL])
    with urlopen(server.url + "/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    with urlopen(server.url + "/status.json", timeout=10) as answer:
        status = json.load(answer)
    server.close()
    marks = {s.labels.get("simulated") for family in families for s in family.samples if "model" in s.labels}
    assert marks == {"true"}
    assert status["models"][MODEL]["simulated"] is True


def test_what_is_not_simulated_says_so(samples: list[Sample]) -> None:
    assert {s.labels["simulated"] for s in samples if "model" in s.labels} == {"false"}


def test_each_counter_is_exported(samples: list[Sample]) -> None:
    names = {sample.name for sample in samples}
    assert {f"{metric}_total" for metric, _, _ in COUNTERS.values()} <= names


def test_a_lost_replica_is_down_and_has_no_gauges(samples: list[Sample]) -> None:
    assert value(samples, "nfold_replica_up", replica="replica-1") == 1
    assert value(samples, "nfold_replica_up", replica="replica-2") == 0
    assert not [s for s in samples if s.name == "nfold_requests_running" and s.labels["replica"] == "replica-2"]
    assert value(samples, "nfold_output_tokens_total", replica="replica-2") > 0


def test_efficiency_and_ledger_agree(samples: list[Sample]) -> None:
    at = {"model": MODEL, "window": "10s"}
    measured = value(samples, "nfold_measured_tokens_per_second", **at)
    provisioned = value(samples, "nfold_provisioned_tokens_per_second", **at)
    lost = {
        s.labels["reason"]: s.value
        for s in samples
        if s.name == "nfold_lost_tokens_per_second" and s.labels["window"] == "10s"
    }
    assert set(lost) == {column.replace(" ", "_") for column in (*COLUMNS, UNEXPLAINED)}
    of_replicas = [s.value for s in samples if s.name == "nfold_replica_lost_tokens_per_second"]
    assert sum(of_replicas) == pytest.approx(sum(lost.values()))
    assert provisioned == pytest.approx(220)
    assert sum(lost.values()) == pytest.approx(provisioned - measured)
    efficiency = value(samples, "nfold_scaling_efficiency_ratio", **at)
    assert efficiency == pytest.approx(measured / provisioned)
    assert value(samples, "nfold_baseline_tokens_per_second", replica="replica-0") == pytest.approx(110)


def test_histograms_are_cumulative(samples: list[Sample]) -> None:
    name = "nfold_time_to_first_token_seconds"
    buckets = {s.labels["le"]: s.value for s in samples if s.name == name + "_bucket"}
    assert buckets == {"0.01": 4, "0.1": 7, "1.0": 9, "+Inf": 10}
    assert value(samples, name + "_count", model=MODEL, pool=POOL) == 10
    assert value(samples, name + "_sum", model=MODEL, pool=POOL) == pytest.approx(0.5)


def test_requests_by_outcome_and_queue(samples: list[Sample]) -> None:
    assert value(samples, "nfold_requests_total", model=MODEL, outcome="finished") == 40
    assert value(samples, "nfold_requests_total", model=MODEL, outcome="refused") == 0
    assert value(samples, "nfold_requests_queued", model=MODEL) == 3
    assert value(samples, "nfold_gateways") == 1


def test_what_tokens_cost(samples: list[Sample]) -> None:
    labels = {"model": MODEL, "currency": "USD"}
    assert value(samples, "nfold_cost_per_hour", part="over_provisioned", **labels) == 6.0
    name = "nfold_cost_per_million_output_tokens"
    assert value(samples, name, part="tokens", **labels) == pytest.approx(9.0 / 0.72)


def test_costs_that_nobody_tells_any_more_are_left_out() -> None:
    assert report_of(two_nodes(), num_looks=3, look_s=29.0).costs == COSTS
    assert report_of(two_nodes(), num_looks=4, look_s=29.0).costs is None


def test_no_efficiency_below_saturation() -> None:
    replicas = [FakeReplica("replica-0", "a" * 56, num_running=1, idle_share=0.5)]
    report = report_of(replicas)
    server = HttpEndpoint(lambda: report, "127.0.0.1", 0)
    with urlopen(server.url + "/metrics", timeout=10) as answer:
        text = answer.read().decode()
    server.close()
    assert "nfold_scaling_efficiency_ratio{" not in text
    assert "nfold_lost_tokens_per_second{" in text


def test_status_page(endpoint: HttpEndpoint) -> None:
    with urlopen(endpoint.url + "/status.json", timeout=10) as answer:
        status = json.load(answer)
    model = status["models"][MODEL]
    assert status["gateways"] == 1
    assert model["tokens_per_s"] == pytest.approx(200, rel=0.02)
    assert model["ledger"]["efficiency"] == pytest.approx(200 / 220, rel=0.02)
    assert sum(model["ledger"]["losses"].values()) == pytest.approx(
        model["ledger"]["baseline"] - model["ledger"]["measured"]
    )
    assert model["latency_s"]["ttft_p50"] == 0.1
    assert model["latency_s"]["tpot_p50"] is None
    assert {replica["replica"]: replica["up"] for replica in model["replicas"]} == {
        "replica-0": True,
        "replica-1": True,
        "replica-2": False,
    }
    assert model["replicas"][0]["kv_used"] == 0.25


def test_other_paths_are_not_found(endpoint: HttpEndpoint) -> None:
    with pytest.raises(HTTPError, match="404"):
        urlopen(endpoint.url + "/", timeout=10)


def test_a_taken_port_is_named(endpoint: HttpEndpoint) -> None:
    port = int(endpoint.url.rpartition(":")[2])
    with pytest.raises(StateError, match=f"cannot listen on 127.0.0.1:{port}"):
        HttpEndpoint(lambda: EMPTY_REPORT, "127.0.0.1", port)
