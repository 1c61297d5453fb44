"""Run records made up whole, with LoadGen logs and distributions, for what reads them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from nfold.cluster.bench.loadgen_log import ACCURACY, DETAIL, SUMMARY
from nfold.cluster.bench.record import (
    AccuracyFacts,
    ClientFacts,
    HostFacts,
    LedgerFacts,
    LoadgenFacts,
    ModelFacts,
    NodeFacts,
    Point,
    RunFigures,
    RunRecord,
    WorkloadFacts,
)
from nfold.cluster.bench.record_store import seal
from nfold.cluster.bench.scenarios import Scenario
from nfold.cluster.latency import Percentiles
from nfold.cluster.provenance import Provenance

_LATENCY = Percentiles(p50=0.1, p90=0.2, p99=0.3)


def make_run(
    figure: float, nodes: Mapping[str, float], logs: str = "2-nodes/run-1", **changes: object
) -> RunFigures:
    found = RunFigures(
        figure=figure,
        unit="tokens/s",
        valid=True,
        void=[],
        problems=[],
        target_qps=100.0,
        samples_per_s=100.0,
        tokens_per_s=figure,
        num_queries=1000,
        num_failed=0,
        num_short=0,
        num_tokens=10_000,
        duration_s=10.0,
        ttft_s=_LATENCY,
        tpot_s=_LATENCY,
        e2e_s=_LATENCY,
        node_tokens_per_s=dict(nodes),
        client=ClientFacts(busy_share=0.1, cpu_cores=0.1, roofline_tokens_per_s=1e6),
        ledger=LedgerFacts(
            window_s=10.0,
            measured=figure,
            baseline=2000.0,
            efficiency=figure / 2000.0,
            losses={"starved": 2000.0 - figure - 20.0, "unexplained": 20.0},
        ),
        logs=logs,
    )
    return found.model_copy(update=changes)


def make_record(
    figures: Sequence[float] = (1900.0, 1901.0, 1899.0),
    *,
    slow: float = 0.0,
    settings: Mapping[str, int | bool] = {"max_num_seqs": 256},
    workload: str = "sums",
    simulated: bool = False,
    **changes: object,
) -> RunRecord:
    """Two nodes of one accelerator each.

    Args:
        slow: the share by which the second node is behind.
    """
    runs = [make_run(figure, {"node-0": figure / 2, "node-1": figure / 2 * (1 - slow)}) for figure in figures]
    one = [make_run(1000.0, {"node-0": 1000.0}, logs="2-nodes/run-1")]
    found = RunRecord(
        workload=WorkloadFacts(
            asked=workload,
            name=workload,
            scenario=Scenario.OFFLINE,
            official=workload != "sums",
            data_set=workload,
            source="made up",
            synthetic=False,
            digest="ab" * 32,
            num_samples=512,
            mean_prompt_tokens=10.0,
        ),
        loadgen=LoadgenFacts(
            version="6.0.17",
            key="nfold-sums",
            settings={"min_duration_ms": 600_000, "ttft_latency": 0, "tpot_latency": 0, "qsl_rng_seed": 7},
            user_conf="",
        ),
        model=ModelFacts(
            name="m",
            weights="cd" * 32,
            weights_name="nfold-sums",
            engine="simulated" if simulated else "native",
            accelerator="CPU",
            tp=1,
            settings=dict(settings),
        ),
        hosts=[
            HostFacts(host="h", cpu="c", num_cores=2, memory_bytes=2**33, kernel="6", system="Linux", driver="6.14")
        ],
        nodes=[
            NodeFacts(name="node-0", accelerator="CPU", healthy=1, host=0),
            NodeFacts(name="node-1", accelerator="CPU", healthy=1, host=0),
        ],
        provenance=Provenance(
            date="2026-01-01T00:00:00+00:00", host="h", cpu="c", num_cores=2, versions={"nfold": "0.1.0"}
        ),
        simulated=simulated,
        departures=[],
        warmup_s=5.0,
        points=[
            Point(nodes=["node-0"], num_accelerators=1, runs=one),
            Point(nodes=["node-0", "node-1"], num_accelerators=2, runs=runs),
        ],
        accuracy=AccuracyFacts(
            metric="exact",
            scores={"exact": 0.999},
            at_least={"exact": 0.99},
            at_most={},
            misses=[],
            gate="ours",
            num_samples=512,
            logs="accuracy",
        ),
        baseline=None,
    )
    return found.model_copy(update=changes)


def write_record(record: RunRecord, directory: Path) -> Path:
    """With the files that its runs point to."""
    random = np.random.default_rng(0)
    for logs in {run.logs for point in record.points for run in point.runs} | {"accuracy"}:
        folder = directory / logs
        folder.mkdir(parents=True)
        for name in (SUMMARY, DETAIL):
            (folder / name).write_text(f"{name} of {logs}\n")
    (directory / "accuracy" / ACCURACY).write_text(
        json.dumps([{"qsl_idx": row, "data": "00"} for row in range(900)])
    )
    np.savez_compressed(
        directory / record.whole.typical.logs / "distributions.npz",
        ttft_s=np.sort(random.gamma(4, 0.05, 500)).astype(np.float32),
        tpot_s=np.sort(random.gamma(9, 0.003, 500)).astype(np.float32),
        e2e_s=np.ones(500, np.float32),
        timeline_s=np.arange(0, 20.5, 0.5),
        node_tokens=np.outer(np.arange(0, 20.5, 0.5), [900.0, 850.0]),
        nodes=np.array(json.dumps(["node-0", "node-1"])),
    )
    (directory / "user.conf").write_text("*.Offline.target_qps = 100\n")
    seal(record, directory)
    return directory
