"""LoadGen runs of MLPerf's own length, as `nfold bench` makes them: verdict, accuracy and caveats of each.

    python benchmarks/mlperf_runs.py embedded [--scenario Server] [--keep benchmarks/results]
    python benchmarks/mlperf_runs.py llama2-70b gpt-oss-120b [--accelerators 87]

`embedded` is the default model on two nodes of this machine, really computed; the others are simulated MI355X with
samples of the official lengths. Ten minutes and more for each scenario. Records stay in a folder where `--records`
names one. The last line is JSON.
"""

import argparse
import json
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from control_plane_fleet import fleet_config, start_fleet
from kept_results import keep
from nfold.cluster.config import NfoldConfig
from nfold.cluster.provenance import provenance
from nfold.cluster.service import start_service, stop_service

EMBEDDED = "embedded"
ACCELERATOR = "MI355X"
# By what is served; the simulated models have no published SingleStream to be fitted to.
SCENARIOS = {
    EMBEDDED: ("Offline", "Server", "Interactive", "SingleStream"),
    "llama2-70b": ("Offline", "Server", "Interactive"),
    "gpt-oss-120b": ("Offline", "Server", "Interactive"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("served", nargs="+", choices=tuple(SCENARIOS))
    parser.add_argument("--scenario", action="append", help="default: all; repeatable")
    parser.add_argument("--accelerators", type=int, default=87, help="simulated ones")
    parser.add_argument("--seconds", type=float, help="less than LoadGen's own: shows that it runs")
    parser.add_argument("--records", type=Path, help="a folder for the run records; default: none is left")
    parser.add_argument("--keep", type=Path, help="a folder: also write the last line there, as kept results are")
    parser.add_argument("--port", type=int, default=8770)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = [
            run(args, served, scenario, Path(scratch)) for served, scenario in wanted(args.served, args.scenario)
        ]
    line = {"benchmark": "mlperf_runs", "runs": runs, "provenance": provenance().model_dump()}
    keep("mlperf_runs-" + "-".join(args.served), line, args.keep)
    print(json.dumps(line))


def wanted(served: Sequence[str], scenarios: Sequence[str] | None) -> list[tuple[str, str]]:
    return [
        (one, scenario) for one in served for scenario in SCENARIOS[one] if not scenarios or scenario in scenarios
    ]


def run(args: argparse.Namespace, served: str, scenario: str, scratch: Path) -> dict[str, Any]:
    from nfold.cluster.bench.bench import run_bench
    from nfold.cluster.bench.order import BenchOrder
    from nfold.cluster.bench.record import headline
    from nfold.cluster.bench.scenarios import Scenario

    def tell(text: str) -> None:
        print(f"  {served} {scenario}: {text}", flush=True)

    order = BenchOrder(
        workload="sums" if served == EMBEDDED else served,
        scenario=Scenario(scenario),
        min_duration_s=args.seconds,
        without_baseline=True,
    )
    records = args.records or scratch
    with service(args, served, scenario, tell) as config:
        record, _ = run_bench(config, scratch, config.models[0].name, order, records / f"{served}-{scenario}", tell)
    print(f"{headline(record)}\n" + "".join(f"  ! {caveat}\n" for caveat in record.caveats), flush=True)
    figures = record.whole.typical
    return {
        "served": served,
        "scenario": scenario,
        "simulated": record.simulated,
        "figure": figures.figure,
        "unit": figures.unit,
        "valid": figures.valid,
        "void": figures.void,
        "accuracy_passed": None if record.accuracy is None else record.accuracy.passed,
        "accuracy": None if record.accuracy is None else record.accuracy.scores,
        "caveats": record.caveats,
        "nodes": record.whole.num_nodes,
        "accelerators": record.whole.num_accelerators,
        "target_qps": figures.target_qps,
        "duration_s": figures.duration_s,
        "num_queries": figures.num_queries,
        "num_failed": figures.num_failed,
        "tokens_per_s": figures.tokens_per_s,
        "ttft_p99_s": figures.ttft_s and figures.ttft_s.p99,
        "tpot_p99_s": figures.tpot_s and figures.tpot_s.p99,
        "client_busy_share": figures.client.busy_share,
    }


@contextmanager
def service(args: argparse.Namespace, served: str, scenario: str, tell: Any) -> Generator[NfoldConfig]:
    """What is measured, running."""
    if served != EMBEDDED:
        config = fleet_config([(ACCELERATOR, args.accelerators)], served, scenario.lower(), port=args.port)
        with start_fleet(config, tell):
            yield config
        return
    config = NfoldConfig.model_validate(
        {
            "name": "mlperf",
            "http": {"port": args.port},
            "metrics": {"port": args.port + 1},
            # Samples come again, and a cache of prefixes would know them.
            "models": [{"name": "sums", "pools": [{"num_replicas": 2}], "engine": {"prefix_cache": False}}],
            "cluster": {"local": {"nodes": 2}},
        }
    )
    with tempfile.TemporaryDirectory() as directory:
        state = start_service(config, Path(directory), tell)
        try:
            yield config
        finally:
            stop_service(state, Path(directory), lambda text: None, drain=False)


if __name__ == "__main__":
    main()
