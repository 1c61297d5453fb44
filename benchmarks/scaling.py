"""One local node against two, under equal load per replica: this machine's scaling efficiency, with its ledger.

    python benchmarks/scaling.py [--repeats 5] [--window 10] [--workload sums] [--concurrency N]

Two Ray nodes on this machine, each with half of its cores, serve the default model. One-node runs and two-node runs
take turns, the former on either node in turn, in a closed loop through this process's own router. In a run on one
node, load generator and router keep to that node's half of the machine, or they would cost it nothing. Prefix
caches are off: questions that were asked before cost as much as new ones. Medians count. Last line: JSON.
"""

import argparse
import json
import os

from local_service import serving
from nfold.cluster.config import NfoldConfig
from nfold.cluster.ledger import account
from nfold.cluster.load import LoadSettings
from nfold.cluster.load_result import LoadResult
from nfold.cluster.report import ScalingReport, render
from nfold.cluster.workloads import Workload
from nfold.deployments.addresses import ReplicaAddress, ServiceKeys
from nfold.deployments.config import HttpConfig, MetricsConfig
from nfold.deployments.cores import kept_on
from rich.console import Console

GOAL = 1.7
QUIET_LOAD = 0.3
MODEL = "nfold-sums"


def config_of(port: int) -> NfoldConfig:
    config = NfoldConfig.default()
    [model] = config.models
    ports = {"http": HttpConfig(port=port), "metrics": MetricsConfig(port=port + 1)}
    return config.model_copy(update={"name": "scaling", "models": [model.without_prefix_cache()], **ports})


class Bench:
    """Runs on the replicas of one node, or on all, each going on in the workload where the one before ended."""

    def __init__(
        self, replicas: list[ReplicaAddress], keys: ServiceKeys, names: dict[str, str], workload: Workload
    ) -> None:
        self._replicas = replicas
        self._keys = keys
        self._names = names
        self._workload = workload
        self._num_asked = 0

    def run(self, nodes: set[str], concurrency: int, settings: LoadSettings) -> LoadResult:
        from nfold.cluster.measure import measure_load
        from nfold.cluster.published import cores_of

        chosen = [replica for replica in self._replicas if replica.node_id in nodes]
        with kept_on(cores_of(chosen)):
            result = measure_load(
                chosen,
                self._keys,
                self._workload,
                concurrency=concurrency,
                settings=settings,
                first=self._num_asked,
                node_names=self._names,
            )
        self._num_asked += result.num_submitted
        failed = f", {result.num_failed} FAILED: {result.first_error}" if result.num_failed else ""
        exact = "" if result.exact_share is None else f", {result.exact_share:.2%} exact"
        print(
            f"  {len(nodes)} node{'s' if len(nodes) > 1 else ' '} {result.output_tokens_per_s:10,.0f} tokens/s"
            f"   client {result.client_cpu_share:5.1%} of a core{exact}{failed}",
            flush=True,
        )
        return result


def measure(args: argparse.Namespace) -> dict[str, object]:
    config = config_of(args.port)
    busy = os.getloadavg()[0]
    if busy > QUIET_LOAD:
        print(f"  other work keeps {busy:.1f} cores busy: the figures will say little", flush=True)
    with serving(config, lambda text: print(f"  {text}", flush=True)):
        return measure_service(config, args) | {"load_average_before": busy}


def measure_service(config: NfoldConfig, args: argparse.Namespace) -> dict[str, object]:
    from nfold.cluster.baseline import hash_weights
    from nfold.cluster.measure import CURVE_WINDOW_S, build_baseline, curve_loads, saturating_concurrency
    from nfold.cluster.measuring import replicas_of
    from nfold.cluster.published import node_names
    from nfold.cluster.service_view import yardstick_name
    from nfold.cluster.workloads import make_workload
    from nfold.deployments.discovery import service_keys

    replicas, directory = replicas_of(config, MODEL), config.models[0].directory
    workload = make_workload(args.workload, directory, max_model_len=replicas[0].max_model_len)
    nodes = sorted({replica.node_id for replica in replicas})
    if len(nodes) != 2:
        raise SystemExit(f"expected replicas on two nodes, found them on {len(nodes)}")
    concurrency = args.concurrency or saturating_concurrency(replicas[0])
    settings = LoadSettings(warmup_s=args.warmup, window_s=args.window)
    bench = Bench(replicas, service_keys(config.name), node_names(), workload)
    one: list[LoadResult] = []
    two: list[LoadResult] = []
    for turn in range(args.repeats):
        one.append(bench.run({nodes[turn % 2]}, concurrency, settings))
        two.append(bench.run(set(nodes), concurrency, settings))
    per_node = len(replicas) // 2
    short = LoadSettings(warmup_s=args.warmup, window_s=CURVE_WINDOW_S)
    less = [bench.run({nodes[0]}, num, short) for num in curve_loads(replicas[0].max_num_seqs)]
    baseline = build_baseline(
        replicas[:per_node], workload.name, hash_weights(directory), concurrency, one, less, "either node"
    )
    typical = _median(two)
    ledger = account(
        typical.samples,
        {yardstick_name(baseline.key.accelerator, baseline.key.tp): baseline.yardstick},
        measured=typical.output_tokens_per_s,
    )
    assert ledger is not None, "the replicas stood all the time"
    report = ScalingReport(
        model=MODEL,
        workload=workload.name,
        one_node_tokens_per_s=baseline.tokens_per_s,
        one_node_spread=baseline.spread,
        num_nodes=2,
        node_tokens_per_s=typical.tokens_per_s_by_node,
        ledger=ledger,
        exact_share=typical.exact_share,
        num_failed=typical.num_failed,
    )
    print()
    Console(width=100).print(render(report))
    pairs = [b.output_tokens_per_s / a.output_tokens_per_s for a, b in zip(one, two, strict=True)]
    print(f"\n{report.ratio:.2f} times one node (goal {GOAL}); pair by pair {min(pairs):.2f} to {max(pairs):.2f}")
    return {
        "model": MODEL,
        "workload": workload.name,
        "concurrency_per_replica": concurrency,
        "repeats": args.repeats,
        "window_s": args.window,
        "one_node_tokens_per_s": baseline.tokens_per_s,
        "two_nodes_tokens_per_s": typical.output_tokens_per_s,
        "ratio": report.ratio,
        "ratio_min": min(pairs),
        "ratio_max": max(pairs),
        "efficiency": ledger.efficiency,
        "losses_tokens_per_s": ledger.losses,
        "exact_share": typical.exact_share,
        "num_failed": sum(result.num_failed for result in (*one, *two)),
        "client_cpu_share": typical.client_cpu_share,
        "provenance": baseline.provenance.model_dump(),
    }


def _median(results: list[LoadResult]) -> LoadResult:
    """The run with the median rate, the lower one of two."""
    return sorted(results, key=lambda result: result.output_tokens_per_s)[(len(results) - 1) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=float, default=3.0, help="seconds")
    parser.add_argument("--window", type=float, default=10.0, help="seconds")
    parser.add_argument("--workload", default="sums", help="sums, random, or random-PROMPT-OUTPUT in median tokens")
    parser.add_argument("--concurrency", type=int, help="requests in flight per replica; default: 1.25 x its slots")
    parser.add_argument("--port", type=int, default=8740)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
