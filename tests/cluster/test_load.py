"""Loads on fake replicas over real sockets: every figure against what the engines really did."""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import numpy as np
import pytest
from fake_engine import FakeEngine, fake_tokens
from nfold.cluster.arrivals import Arrivals, ClosedLoop, Offline, Poisson
from nfold.cluster.ledger import Yardstick, account
from nfold.cluster.load import LoadSettings, run_load
from nfold.cluster.load_result import LoadResult
from nfold.cluster.measure import (
    measure_baseline,
    measure_load,
    measuring_router,
    replicas_of_one_node,
    saturating_concurrency,
)
from nfold.cluster.workloads import Workload
from nfold.deployments.addresses import ReplicaAddress
from nfold.deployments.router import Router, RouterSettings
from nfold.models.engine.protocol import SamplingParams
from nfold.models.errors import ConfigError, EngineError, StateError, UnavailableError
from service_rig import Rig

MODEL = "fake"
SHORT = LoadSettings(warmup_s=0.05, window_s=0.4)
COUNTED = LoadSettings(warmup_s=0.0, window_s=60.0, max_requests=120)
STEP_S = 0.002
NUM_TOKENS = 10


def workload_of(num: int, max_tokens: int = NUM_TOKENS, *, wrong: Sequence[int] = ()) -> Workload:
    """Prompts of growing length; the check knows what a fake engine answers, and errs on purpose on `wrong`."""
    prompts = [np.arange(1, 2 + i % 20, dtype=np.int32) + i for i in range(num)]
    sampling = [SamplingParams(max_tokens, ignore_eos=True)] * num

    def check(index: int, token_ids: Sequence[int]) -> bool:
        expected = fake_tokens(prompts[index].tolist(), max_tokens)
        return list(token_ids) == expected and index not in wrong

    return Workload("counting", prompts, sampling, check)


@contextmanager
def replicas_on(*node_ids: str, max_num_seqs: int = 8) -> Generator[tuple[list[FakeEngine], list[ReplicaAddress]]]:
    """One replica per node named."""
    engines = [FakeEngine(max_num_seqs=max_num_seqs, step_s=STEP_S) for _ in node_ids]
    with Rig() as rig:
        running = [
            rig.replica(f"replica-{i}", engine, model=MODEL, node_id=node_id)
            for i, (engine, node_id) in enumerate(zip(engines, node_ids, strict=True))
        ]
        yield engines, [replica.address for replica in running]


def two_replicas(max_num_seqs: int = 8) -> AbstractContextManager[tuple[list[FakeEngine], list[ReplicaAddress]]]:
    return replicas_on("node-0", "node-1", max_num_seqs=max_num_seqs)


def run(
    addresses: list[ReplicaAddress], arrivals: Arrivals, workload: Workload, settings: LoadSettings
) -> LoadResult:
    with measuring_router(addresses, None) as router:
        return run_load(
            router, MODEL, workload, arrivals, settings, node_names={"node-0": "first", "node-1": "second"}
        )


def test_offline_counts_every_token_of_every_request() -> None:
    workload = workload_of(50, wrong=(3, 4))
    with two_replicas() as (engines, addresses):
        result = run(addresses, Offline(50), workload, SHORT)
        told = [engine.stats().total_output_tokens for engine in engines]
    assert not result.steady
    assert result.num_requests == 50
    assert result.num_failed == 0
    assert result.num_output_tokens == 50 * NUM_TOKENS == sum(told)
    assert result.num_prompt_tokens == sum(len(prompt) for prompt in workload.prompts)
    assert result.exact_share == pytest.approx(48 / 50)
    assert [result.output_tokens_by_replica[f"replica-{i}"] for i in range(2)] == told
    assert set(result.tokens_per_s_by_node) == {"first", "second"}
    assert result.output_tokens_per_s == pytest.approx(sum(result.tokens_per_s_by_node.values()))
    assert result.ttft_s is not None
    assert result.tpot_s is not None
    assert result.e2e_s is not None
    assert 0 < result.ttft_s.p50 <= result.e2e_s.p50
    assert 0 <= result.tpot_s.p50 <= result.e2e_s.p50


def test_a_closed_loop_is_measured_in_its_midst() -> None:
    with two_replicas() as (_, addresses):
        result = run(addresses, ClosedLoop(20), workload_of(64), COUNTED)
    assert result.steady
    assert result.num_failed == 0
    assert result.exact_share == 1.0
    assert 0 < result.num_requests <= 100
    # What ends in the window began, for a part, before it; so tokens match requests but for one loop at each end.
    assert result.num_output_tokens == pytest.approx(result.num_requests * NUM_TOKENS, abs=20 * NUM_TOKENS)
    assert result.samples[0].num_in_flight > 0
    assert result.client_cpu_share > 0


def test_the_ledger_of_a_saturated_loop_has_no_idle_time() -> None:
    with two_replicas() as (_, addresses):
        # So many that both replicas' slots may end at once, several times, and all are still wanted.
        result = run(addresses, ClosedLoop(80), workload_of(64), replace(COUNTED, max_requests=800))
    half = result.output_tokens_per_s / 2
    ledger = account(result.samples, {"CPU/tp1": Yardstick(half, 8.0)}, measured=result.output_tokens_per_s)
    assert ledger is not None
    assert ledger.saturated
    assert ledger.efficiency == pytest.approx(1.0, rel=1e-6)
    assert sum(ledger.losses.values()) == pytest.approx(0.0, abs=1e-6 * half)


def test_a_poisson_load_has_its_rate() -> None:
    with two_replicas() as (_, addresses):
        result = run(addresses, Poisson(100.0, seed=5), workload_of(64), replace(COUNTED, max_requests=50))
    assert result.arrivals == "Poisson, 100 requests/s"
    assert result.num_requests > 0
    assert result.num_failed == 0


def test_an_open_load_counts_what_a_full_queue_refuses() -> None:
    with two_replicas(max_num_seqs=1) as (_, addresses):
        router = Router("small", None, RouterSettings(max_queued=1))
        router.update_replicas(addresses)
        while any(replica.status is None for replica in router.snapshot().replicas):
            router.poll(0.05)
        result = run_load(router, MODEL, workload_of(64), Poisson(5000.0), SHORT)
        router.close()
    assert result.num_failed > 0
    assert "of model fake" in result.first_error
    assert result.num_exact == result.num_requests - result.num_failed


def test_failed_requests_are_counted_and_a_hopeless_run_ends() -> None:
    too_long = Workload("too long", [np.ones(20, np.int32)], [SamplingParams(10_000)])
    with two_replicas() as (_, addresses), pytest.raises(EngineError, match=r"all of the first .* failed"):
        run(addresses, ClosedLoop(8), too_long, SHORT)


def test_a_stalled_engine_ends_the_run() -> None:
    settings = LoadSettings(warmup_s=0.05, window_s=60, stall_s=0.3)
    with two_replicas() as (engines, addresses):
        for engine in engines:
            engine.gate.clear()
        with pytest.raises(UnavailableError, match=r"no request has ended for 0\.3 s.*in flight"):
            run(addresses, ClosedLoop(8), workload_of(8), settings)


def test_a_run_is_bounded_in_time() -> None:
    settings = LoadSettings(warmup_s=60, window_s=60, timeout_s=0.2)
    with (
        two_replicas() as (_, addresses),
        pytest.raises(UnavailableError, match=r"not ended within 0\.2 s"),
    ):
        run(addresses, ClosedLoop(8), workload_of(8), settings)


def test_a_run_is_bounded_in_requests() -> None:
    bounded = LoadSettings(warmup_s=0.0, window_s=60, max_requests=60)
    with two_replicas() as (_, addresses):
        result = run(addresses, ClosedLoop(20), workload_of(64), bounded)
        assert result.num_requests <= 60
        with pytest.raises(ConfigError, match="max_requests: got 10"):
            run(addresses, ClosedLoop(20), workload_of(64), LoadSettings(warmup_s=60, max_requests=10))


def test_what_is_left_at_the_end_is_aborted() -> None:
    with two_replicas() as (engines, addresses):
        run(addresses, ClosedLoop(20), workload_of(64), SHORT)
        run(addresses, Offline(4), workload_of(4), SHORT)
        assert any(engine.aborted_ids for engine in engines)
        assert not any(engine.has_work() for engine in engines)


def test_a_run_can_go_on_where_another_ended() -> None:
    """So that the prefix cache answers nothing. Fails unless each reply is matched with its own prompt."""
    workload = workload_of(50, wrong=(5,))
    with two_replicas() as (_, addresses), measuring_router(addresses, None) as router:
        first = run_load(router, MODEL, workload, Offline(10), SHORT)
        second = run_load(router, MODEL, workload, Offline(10), SHORT, first=first.num_submitted)
    assert first.num_submitted == 10
    assert first.exact_share == 0.9
    assert second.exact_share == 1.0


def test_progress_lines_tell_the_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfold.cluster.load.PROGRESS_S", 0.05)
    lines: list[str] = []
    with two_replicas() as (_, addresses):
        measure_load(addresses, None, workload_of(64), concurrency=8, settings=SHORT, progress=lines.append)
    assert any("closed loop of 16: measuring" in line for line in lines)


def test_a_replica_that_is_not_there_is_named() -> None:
    with replicas_on("node-0") as (_, addresses):
        gone = addresses[0]
    with (
        pytest.raises(UnavailableError, match=r"not all replicas are ready after 0\.2 s: replica-0"),
        measuring_router([gone], None, timeout_s=0.2),
    ):
        pytest.fail("it is not there")


def test_the_baseline_is_of_one_node() -> None:
    with replicas_on("one", "two", "two") as (engines, addresses):
        baseline = measure_baseline(
            addresses,
            None,
            workload_of(64),
            weights="w",
            repeats=3,
            settings=COUNTED,
            curve=True,
            node_names={"two": "n2"},
        )
        untouched = engines[0].stats().total_output_tokens
    assert untouched == 0
    assert baseline.node == "n2"
    assert baseline.num_replicas == 2
    assert baseline.concurrency == 10
    assert baseline.tokens_per_s == sorted(baseline.repeats)[1]
    assert baseline.yardstick.tokens_per_s == pytest.approx(baseline.tokens_per_s / 2)
    assert 1 <= baseline.num_in_flight <= 10  # how many of them depends on how fast the client is
    assert baseline.settings == {"step_s": STEP_S}
    assert baseline.engine == "fake"
    sizes = [point.num_tokens for point in baseline.step_times]
    assert sizes == sorted(sizes)
    assert 1 <= sizes[0] < sizes[-1] <= 8
    assert all(point.step_s == pytest.approx(STEP_S) for point in baseline.step_times)


def test_a_baseline_is_not_taken_from_failing_replicas() -> None:
    mixed = Workload(
        "mixed",
        [np.ones(20, np.int32)] * 4,
        [*[SamplingParams(NUM_TOKENS, ignore_eos=True)] * 3, SamplingParams(10_000)],
    )
    with two_replicas() as (_, addresses), pytest.raises(StateError, match="requests failed"):
        measure_baseline(addresses, None, mixed, weights="w", repeats=1, settings=SHORT)


def address(node_id: str, accelerator: str = "CPU", max_num_seqs: int = 8) -> ReplicaAddress:
    return ReplicaAddress(
        replica_id=f"{node_id}-{accelerator}",
        model=MODEL,
        pool="p",
        accelerator=accelerator,
        node_id=node_id,
        host="h",
        ipc_endpoint="",
        tcp_endpoint="",
        max_num_seqs=max_num_seqs,
        max_model_len=64,
        tp=1,
    )


def test_which_node_is_measured() -> None:
    one, two, other = address("a"), address("b"), address("b", "GPU")
    assert replicas_of_one_node([one, two]) == [one]
    assert replicas_of_one_node([one, two], "b") == [two]
    with pytest.raises(StateError, match="CPU with tp 1 and GPU with tp 1"):
        replicas_of_one_node([one, two, other])
    with pytest.raises(StateError, match="node c"):
        replicas_of_one_node([one], "c")
    assert saturating_concurrency(address("a", max_num_seqs=256)) == 320
