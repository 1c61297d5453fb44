"""The observer: several routers are one service, totals never go back, and what is stale says nothing of now."""

from dataclasses import replace

import pytest
from fake_service import BOUNDS_S, MODEL, NODE_NAMES, POOL, FakeReplica, FakeRouter, baseline, two_nodes
from nfold.cluster.observer import CounterKey, Observer, Reading, ServiceReport
from nfold.cluster.totals import Totals


class Bench:
    """An observer on a clock that only the test moves."""

    def __init__(self, routers: list[FakeRouter], window_s: float = 15.0) -> None:
        self.now_s = 1000.0
        self.routers = routers
        self.observer = Observer(lambda: self.now_s, window_s=window_s, stale_after_s=5.0)

    def look(self, seconds: float = 1.0, baselines: tuple[float, ...] = (100.0,)) -> ServiceReport:
        self.now_s += seconds
        snapshots = [router.snapshot(self.now_s) for router in self.routers]
        return self.observer.observe(Reading(snapshots, NODE_NAMES, [baseline(rate) for rate in baselines]))


def total(report: ServiceReport, name: str, *labels: str) -> float:
    """Sum of a counter over all label sets that contain `labels`."""
    return sum(
        v for (counter, values), v in report.counters.items() if counter == name and set(labels) <= set(values)
    )


def test_rates_efficiency_and_ledger_over_the_window() -> None:
    bench = Bench([FakeRouter("r", two_nodes(rate=90.0))])
    for _ in range(10):
        report = bench.look()
    entry = report.models[MODEL]
    assert entry.replica_tokens_per_s == pytest.approx({"replica-0": 90.0, "replica-1": 90.0}, rel=0.02)
    assert entry.ledger is not None
    assert entry.ledger.efficiency == pytest.approx(0.9, rel=0.02)
    assert entry.ledger.unexplained == pytest.approx(20.0, abs=2.0)


def test_the_window_slides() -> None:
    replicas = two_nodes()
    bench = Bench([FakeRouter("r", replicas)], window_s=5.0)
    for _ in range(20):
        report = bench.look()
    assert report.models[MODEL].ledger is not None
    assert report.models[MODEL].ledger.window_s == pytest.approx(5.0)


def test_no_efficiency_without_a_baseline() -> None:
    bench = Bench([FakeRouter("r", two_nodes())])
    bench.look(baselines=())
    report = bench.look(baselines=())
    assert report.models[MODEL].ledger is None
    assert sum(report.models[MODEL].replica_tokens_per_s.values()) == pytest.approx(200.0)


def test_routers_add_up_and_the_freshest_word_on_a_replica_counts() -> None:
    replicas = two_nodes()
    one = FakeRouter("one", replicas, num_queued=3, num_finished=10, ttft_counts=(5, 5, 0, 0), status_age_s=0.9)
    other = FakeRouter("other", replicas, num_queued=4, num_finished=20, ttft_counts=(1, 2, 3, 4))
    report = Bench([one, other]).look()
    assert report.num_routers == 2
    assert report.view.models[MODEL].num_queued == 7
    assert total(report, "requests", "finished") == 30
    assert report.histograms["ttft", MODEL, POOL].counts == (6, 7, 3, 4)
    assert report.histograms["ttft", MODEL, POOL].bounds_s == BOUNDS_S
    assert total(report, "output_tokens", "replica-0") == 100 * 1001


def test_a_router_that_only_one_replica_answers_does_not_bury_it() -> None:
    alive, dead = FakeReplica("replica-0", "a" * 56), FakeReplica("replica-0", "a" * 56, alive=False)
    report = Bench([FakeRouter("one", [alive]), FakeRouter("other", [dead])]).look()
    assert report.view.replicas["replica-0"].alive
    assert report.view.replicas["replica-0"].state == "ready"


def test_totals_survive_the_restart_of_a_replica_and_of_a_gateway() -> None:
    replicas = two_nodes()
    bench = Bench([FakeRouter("gateway-1", replicas, num_finished=50, ttft_counts=(50, 0, 0, 0))])
    before = bench.look()
    replicas[0].started_at = bench.now_s
    bench.routers = [FakeRouter("gateway-2", replicas, num_finished=1, ttft_counts=(1, 0, 0, 0))]
    after = bench.look()
    assert total(before, "output_tokens", "replica-0") == 100_100
    assert total(after, "output_tokens", "replica-0") == 100_200
    assert total(after, "requests", "finished") == 51
    assert after.histograms["ttft", MODEL, POOL].counts == (51, 0, 0, 0)
    assert all(after.counters[key] >= count for key, count in before.counters.items())


def test_a_dead_gateways_last_word_says_nothing_of_now() -> None:
    replicas = two_nodes()
    dead = FakeRouter("dead", replicas, num_queued=9, num_finished=5)
    bench = Bench([FakeRouter("live", replicas, num_queued=1, num_finished=1)])
    last_word = dead.snapshot(bench.now_s)
    for _ in range(8):
        bench.now_s += 1
        snapshots = [bench.routers[0].snapshot(bench.now_s), last_word]
        report = bench.observer.observe(Reading(snapshots, NODE_NAMES))
    assert report.num_routers == 1
    assert report.view.models[MODEL].num_queued == 1
    assert total(report, "requests", "finished") == 6


def test_replicas_are_labelled_by_the_name_of_their_node() -> None:
    replicas = [FakeReplica("replica-0", "a" * 56), FakeReplica("replica-9", "c" * 56)]
    report = Bench([FakeRouter("r", replicas)]).look()
    key: CounterKey = ("output_tokens", (MODEL, POOL, "node-0", "replica-0", "CPU"))
    assert key in report.counters
    assert report.view.replicas["replica-9"].node == "c" * 56


def test_a_baseline_of_another_model_or_accelerator_is_not_used() -> None:
    bench = Bench([FakeRouter("r", two_nodes())])
    other_model = baseline().model_copy(update={"key": baseline().key.model_copy(update={"model": "llama"})})
    other_gpu = baseline().model_copy(update={"key": baseline().key.model_copy(update={"accelerator": "GPU"})})
    for _ in range(2):
        bench.now_s += 1
        reading = Reading([bench.routers[0].snapshot(bench.now_s)], NODE_NAMES, [other_model, other_gpu])
        report = bench.observer.observe(reading)
    assert report.models[MODEL].ledger is None


def test_totals_ignore_late_news() -> None:
    totals = Totals[str]()
    totals.update("a", 1.0, {"x": 70})
    totals.update("a", 1.0, {"x": 60})
    assert dict(totals.items()) == {"x": 70}
    totals.update("a", 2.0, {"x": 5})
    totals.update("a", 1.0, {"x": 90})
    assert dict(totals.items()) == {"x": 75}


def test_an_empty_service_gives_an_empty_report() -> None:
    report = Bench([]).look()
    assert report.models == {}
    assert replace(report, counters={}) == report
