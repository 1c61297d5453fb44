"""The baseline that a run on one node is for those on more: with a step-time curve only if the run tells one."""

import numpy as np
import pytest
from nfold.cluster.baseline import BaselineKey
from nfold.cluster.bench.accounting import baseline_of, ledger_of
from nfold.cluster.bench.client import ClientResult
from nfold.cluster.bench.rules import rules_of
from nfold.cluster.bench.scenarios import Scenario
from nfold.cluster.bench.settings import run_settings
from nfold.cluster.ledger import ModelCounters
from nfold.cluster.service_view import yardstick_name
from nfold.deployments.addresses import ReplicaAddress
from step_spans import ANSWER, BATCH, CURVE, PROMPT, SteppingReplica

REPLICA = ReplicaAddress(
    replica_id="a",
    model="m",
    pool="pool",
    accelerator="CPU",
    node_id="node-0",
    host="",
    ipc_endpoint="",
    tcp_endpoint="",
    max_num_seqs=BATCH,
    max_model_len=256,
    tp=1,
)
KEY = BaselineKey(model="m", accelerator="CPU", tp=1, workload="free-Offline")


def seconds_of(replica: SteppingReplica, *batches: int) -> tuple[ModelCounters, ...]:
    """A second of each batch."""
    samples = [ModelCounters(time_s=replica.now_s, num_queued=0, replicas=(replica.counters(),))]
    for batch in batches:
        replica.work(1.0, batch=batch)
        samples.append(ModelCounters(time_s=replica.now_s, num_queued=0, replicas=(replica.counters(),)))
    return tuple(samples)


def result_of(*batches: int, little: tuple[int, ...] = ()) -> ClientResult:
    """A second of each batch; `little` before the run."""
    counters_of_little = seconds_of(SteppingReplica(), *little) if little else ()
    replica = SteppingReplica(yardstick=yardstick_name(KEY.accelerator, KEY.tp))
    counters = seconds_of(replica, *batches)
    latencies = np.full(8, 0.1)
    return ClientResult(
        settings=run_settings(rules_of("free"), Scenario.OFFLINE, 8),
        num_queries=8,
        num_failed=0,
        num_short=0,
        first_error="",
        num_tokens=replica.num_output,
        busy_share=0.1,
        delayed_share=0.0,
        cpu_s=0.1,
        end_s=replica.now_s,
        ttft_s=latencies,
        tpot_s=latencies,
        e2e_s=latencies,
        counters=counters,
        counters_of_little=counters_of_little,
        timeline_s=np.zeros(0),
        node_tokens=np.zeros((0, 1)),
        nodes=("node-0",),
        node_speeds={},
    )


def test_saturation_alone_tells_no_curve() -> None:
    baseline = baseline_of(KEY, [REPLICA], "node-0", [result_of(*[BATCH] * 10)])
    assert (baseline.curve, baseline.saturation) == (None, None)


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(result_of(*[BATCH] * 10, 32, 16, 8, 4, 2, 1), id="at its end"),
        pytest.param(result_of(*[BATCH] * 10, little=(1, 2, 4, 8, 16, 32)), id="before it"),
    ],
)
def test_a_run_with_small_batches_does(result: ClientResult) -> None:
    baseline = baseline_of(KEY, [REPLICA], "node-0", [result])
    assert baseline.curve is not None
    for batch in (2, 16, BATCH):
        asked = (round(PROMPT * batch / ANSWER), batch, 0)
        assert baseline.curve.step_s(*asked) == pytest.approx(CURVE.step_s(*asked), rel=0.01)


def test_the_ends_that_the_baseline_has_too_are_no_loss() -> None:
    whole = result_of(8, 16, *[BATCH] * 30, 32, 16, 8, 4, 2, 1)
    baseline = baseline_of(KEY, [REPLICA], "node-0", [whole])
    ledger = ledger_of(whole, baseline)
    assert ledger is not None
    assert {name: ledger.share(name) for name in ledger.losses} == pytest.approx(
        dict.fromkeys(ledger.losses, 0.0), abs=0.01
    )


def test_a_longer_end_than_the_baselines_is() -> None:
    baseline = baseline_of(KEY, [REPLICA], "node-0", [result_of(*[BATCH] * 30, 32, 16, 8, 4, 2, 1)])
    ledger = ledger_of(result_of(*[BATCH] * 30, *[1] * 20), baseline)
    assert ledger is not None
    assert ledger.share("no demand") > 0.2
    assert abs(ledger.share("underfilled")) < 0.01
    assert sum(ledger.losses.values()) == pytest.approx(ledger.gap)
