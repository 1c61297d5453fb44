"""The observer: several routers are one service, totals never go back, and what is stale says nothing of now."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from fake_service import BOUNDS_S, MODEL, NODE_NAMES, POOL, FakeReplica, FakeRouter, baseline, two_nodes
from nfold.cluster.ledger import Ledger, Place
from nfold.cluster.ledger import total as total_ledger
from nfold.cluster.observer import WINDOWS_S, CounterKey, Observer, Reading, ServiceReport
from nfold.cluster.provisioned import PoolTarget
from nfold.cluster.totals import Totals


class Bench:
    """An observer on a clock that only the test moves."""

    def __init__(
        self,
        routers: list[FakeRouter],
        targets: Mapping[str, PoolTarget] | None = None,
        quarantined: frozenset[str] = frozenset(),
    ) -> None:
        self.now_s = 1000.0
        self.routers = routers
        self.observer = Observer(lambda: self.now_s, stale_after_s=5.0)
        self._targets = targets or {}
        self._quarantined = quarantined

    def look(self, seconds: float = 1.0, baselines: tuple[float, ...] = (100.0,)) -> ServiceReport:
        self.now_s += seconds
        snapshots = [router.snapshot(self.now_s) for router in self.routers]
        known = [baseline(rate) for rate in baselines]
        return self.observer.observe(Reading(snapshots, NODE_NAMES, known, self._targets, self._quarantined))


def total_of(replicas: Mapping[Place, Ledger]) -> Ledger:
    ledger = total_ledger(replicas.values())
    assert ledger is not None
    return ledger


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


def test_the_windows_slide() -> None:
    bench = Bench([FakeRouter("r", two_nodes())])
    for _ in range(100):
        report = bench.look()
    windows = report.models[MODEL].ledgers
    assert {asked: total_of(windows[asked]).window_s for asked in WINDOWS_S} == pytest.approx(
        {10.0: 10.0, 60.0: 60.0, 600.0: 99.0}
    )
    assert report.models[MODEL].ledger == total_of(windows[10.0])


def test_what_an_observer_before_saw_is_a_hole() -> None:
    """The replicas are older than the observer: it does not make up what happened before."""
    replicas = two_nodes()
    bench = Bench([FakeRouter("r", replicas)])
    for _ in range(31):
        report = bench.look()
    holes = {asked: total_of(replicas).hole_s for asked, replicas in report.models[MODEL].ledgers.items()}
    assert holes == pytest.approx({10.0: 0.0, 60.0: 30.0, 600.0: 570.0})


def test_a_time_without_looks_is_a_hole() -> None:
    bench = Bench([FakeRouter("r", two_nodes())])
    for seconds in [1.0] * 20 + [8.0] + [1.0] * 5:
        report = bench.look(seconds)
    ledger = total_of(report.models[MODEL].ledgers[10.0])
    assert (ledger.window_s, ledger.hole_s) == pytest.approx((5.0, 8.0))


def test_a_replica_that_is_wanted_and_gone_is_unhealthy() -> None:
    target = {POOL: PoolTarget(MODEL, "CPU", 1, num_wanted=2, num_starting=0)}
    bench = Bench([FakeRouter("r", two_nodes())], targets=target)
    bench.look()
    del bench.routers[0].replicas[1]
    for _ in range(20):
        report = bench.look()
    parts = {place.replica: ledger for place, ledger in report.models[MODEL].ledgers[10.0].items()}
    assert parts["replica-1"].share("unhealthy") == pytest.approx(1.0)
    assert parts["replica-0"].measured == pytest.approx(100.0)


def test_a_quarantined_replica_lacks_work_for_that() -> None:
    idle = [FakeReplica("replica-0", "a" * 56), FakeReplica("replica-1", "b" * 56, idle_share=1.0, num_running=0)]
    bench = Bench([FakeRouter("r", idle)], quarantined=frozenset({"replica-1"}))
    for _ in range(5):
        report = bench.look()
    ledger = report.models[MODEL].ledger
    assert ledger is not None
    assert ledger.share("unhealthy") == pytest.approx(0.5)


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
