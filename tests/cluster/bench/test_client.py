"""The real LoadGen through a real router, on replicas that compute nothing."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nfold.cluster.bench.client import ClientJob, run_client
from nfold.cluster.bench.client_process import run_in_process
from nfold.cluster.bench.figures import check_client, run_figures, void_reasons
from nfold.cluster.bench.loadgen_log import read_log
from nfold.cluster.bench.made_sets import random_set
from nfold.cluster.bench.order import parse_nodes, parse_scenario
from nfold.cluster.bench.peak import find_peak
from nfold.cluster.bench.progress_line import ProgressLine, expected_queries
from nfold.cluster.bench.queries import Queries
from nfold.cluster.bench.roofline import best_rate
from nfold.cluster.bench.rules import rules_of
from nfold.cluster.bench.scenarios import Scenario
from nfold.cluster.bench.settings import Asked, run_settings
from nfold.cluster.bench.warmup import load_little
from nfold.cluster.measure import measuring_router
from nfold.cluster.roofline import ReplicaSize, empty_replicas
from nfold.models.errors import ConfigError, EngineError, StateError

SIZE = ReplicaSize("m", max_num_seqs=64, max_model_len=256)


def test_loadgen_runs_and_its_log_agrees_with_the_client(tmp_path: Path):
    samples = random_set(16, 16, 128, 127, 256, simulated=True)
    asked = Asked(target_qps=400, min_duration_s=0.4, min_queries=64)
    settings = run_settings(rules_of("free"), Scenario.SERVER, len(samples), asked=asked)
    with empty_replicas([SIZE] * 2) as replicas:
        job = ClientJob(
            model="m",
            replicas=tuple(replicas),
            nodes={replica.replica_id: f"node-{number}" for number, replica in enumerate(replicas)},
            samples=samples,
            settings=settings,
            log_dir=tmp_path / "run-1",
        )
        result = run_client(job)
    log = read_log(tmp_path / "run-1")
    assert log.errors == ()
    assert result.num_queries == log.number("result_query_count") == expected_queries(settings, len(samples))
    assert (result.num_failed, result.num_short) == (0, 0)
    assert samples.answer_lens is not None
    assert result.num_tokens == samples.answer_lens.sum() * result.num_queries // len(samples)
    assert result.node_tokens[-1].sum() == result.num_tokens
    assert result.nodes == ("node-0", "node-1")
    # On a full machine the figure would be refused, which has tests of its own.
    figures = run_figures(log, replace(result, busy_share=0.0, delayed_share=0.0), None, None, "run-1")
    assert figures.figure == log.number("result_completed_tokens_per_second")
    assert figures.target_qps == 400
    assert best_rate(result) >= result.num_tokens / result.end_s


def test_a_client_that_is_killed_says_so(tmp_path: Path):
    samples = random_set(16, 16, 1, 127, 256, simulated=True)
    settings = run_settings(rules_of("free"), Scenario.OFFLINE, len(samples))
    job = ClientJob(model="m", replicas=(), nodes={}, samples=samples, settings=settings, log_dir=tmp_path)
    with pytest.raises(EngineError, match="memory runs out"):
        run_in_process(job, on_start=lambda pid: os.kill(pid, signal.SIGKILL))


def test_loads_of_few_requests_are_looked_at_and_leave_nothing_behind():
    samples = random_set(16, 64, 32, 127, 256, simulated=True)
    looks: list[float] = []
    with empty_replicas([SIZE] * 2) as replicas, measuring_router(replicas, None, timeout_s=30.0) as router:
        seen: set[int] = set()

        def look(passed_s: float) -> None:
            looks.append(passed_s)
            seen.add(sum(each.num_in_flight for each in router.snapshot().replicas))

        load_little(router, "m", samples, look, seconds=0.3)
        assert sum(each.num_in_flight for each in router.snapshot().replicas) == 0
    assert looks == sorted(looks)
    assert max(seen) == 2 * 64 // 16
    assert 2 in seen


def test_a_busy_client_gives_no_figure():
    with pytest.raises(
        StateError, match=r"client-limited, so there is no figure: the load generator was busy for 95%"
    ):
        check_client(0.95, 1.0, None)


def test_a_client_near_its_roofline_gives_no_figure():
    check_client(0.1, 799.0, 1000.0)
    with pytest.raises(StateError, match=r"900 tokens/s is more than 80% of the 1,000"):
        check_client(0.1, 900.0, 1000.0)


def test_one_percent_of_failures_voids_a_run():
    assert void_reasons(10_000, 10, 10) == []
    [reason] = void_reasons(1000, 10, 0, "boom")
    assert reason == "10 of 1,000 requests failed (1.00%, at most 0.1%); the first said: boom"
    assert "were answered short" in void_reasons(1000, 0, 10)[0]
    assert void_reasons(0, 0, 0) == ["no query was issued"]


def test_whole_data_sets_are_expected_of_loadgen():
    settings = run_settings(rules_of("sums"), Scenario.SERVER, 100, asked=Asked(target_qps=10, min_duration_s=25))
    assert expected_queries(settings, 100) == 300


def test_progress_tells_when_the_run_will_end():
    samples = random_set(16, 16, 100, 127, 256, simulated=True)
    settings = run_settings(rules_of("free"), Scenario.SERVER, 100, asked=Asked(target_qps=10, min_duration_s=30))
    queries = Queries()
    queries.add(np.arange(50), np.arange(50), 0.0)
    queries.note_end(np.arange(40), np.full(40, 16, np.int32), np.ones(40, np.uint8), 5.0)
    line = ProgressLine(settings, samples)
    assert line.of(queries, 5.0) == "Server performance: 40 of 300 answered, 128 tokens/s, about 25 s left"
    assert line.left_s(queries, 31.0) == pytest.approx(260 / 40 * 31)


def test_the_peak_is_found_from_below_and_from_above():
    for start in (1.0, 400.0):
        peak, probes = find_peak(start, lambda qps: qps <= 50.0)
        assert 48.5 <= peak <= 50.0
        assert len(probes) <= 14


def test_a_peak_that_is_nowhere_is_told():
    with pytest.raises(StateError, match="kept the latency limits"):
        find_peak(10.0, lambda qps: False)


def test_orders_are_checked():
    assert parse_nodes("4,1,2") == (1, 2, 4)
    assert parse_nodes("all") is None
    assert parse_scenario("single-stream") is Scenario.SINGLE_STREAM
    for text in ("0", "a", "1;2"):
        with pytest.raises(ConfigError, match="numbers of nodes"):
            parse_nodes(text)
    with pytest.raises(ConfigError, match="must be one of Offline, Server, Interactive, SingleStream"):
        parse_scenario("MultiStream")


def test_a_damaged_log_is_told(tmp_path: Path):
    with pytest.raises(EngineError, match="left no log"):
        read_log(tmp_path)
    (tmp_path / "mlperf_log_detail.txt").write_text(':::MLLOG {"key": 1}\n')
    with pytest.raises(EngineError, match="not a line of LoadGen's"):
        read_log(tmp_path)


def test_a_client_without_a_core_gives_no_figure():
    check_client(0.1, 1.0, None, delayed_share=0.2)
    with pytest.raises(StateError, match=r"for 64% of the run the load generator had work and no core"):
        check_client(0.1, 1.0, None, delayed_share=0.64)
