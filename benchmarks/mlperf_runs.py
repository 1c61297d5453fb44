"""LoadGen runs of MLPerf's own length, as `nfold bench` makes them: verdict, accuracy and caveats of each.

    python benchmarks/mlperf_runs.py embedded --scenario Server --keep benchmarks/results
    python benchmarks/mlperf_runs.py llama2-70b gpt-oss-120b --accelerators 94 --baseline --keep benchmarks/results

`embedded` is the default model on two nodes of this machine, really computed; the others are simulated MI355X with
samples of the official lengths. Ten minutes and more for each scenario, with `--baseline` as long again for one
node alone, by which the ledger measures (with `--baselines` that of another number of accelerators is taken again);
`--list` says what would run.

With `--keep` each run has a file of its own as soon as it has ended, and those that have one are not run again,
unless `--again` is given: a series that was cut off goes on where it was. Records stay where `--records` says.
Fails when a run is not VALID or its accuracy is not passed, except for what `IMPOSSIBLE` says. Last line: JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from control_plane_fleet import fleet_config, start_fleet
from kept_results import keep, kept
from local_service import serving
from nfold.cluster.config import NfoldConfig
from nfold.cluster.provenance import provenance
from nfold.models.errors import NfoldError

EMBEDDED = "embedded"
ACCELERATOR = "MI355X"
# What simulated accelerators serve, by workload.
PROFILES = {"llama2-70b": "llama-2-70b", "gpt-oss-120b": "gpt-oss-120b"}
# Nobody published SingleStream of the large models, so nothing of theirs is fitted to it.
SCENARIOS = {
    EMBEDDED: ("Offline", "Server", "Interactive", "SingleStream"),
    "llama2-70b": ("Offline", "Server", "Interactive"),
    "gpt-oss-120b": ("Offline", "Server", "Interactive"),
}
# Runs whose limits the simulated accelerator cannot keep, and why; at what share of the published Server rate they
# are run all the same. The engines have Server's settings then.
IMPOSSIBLE = {("gpt-oss-120b", "Interactive"): "a step of MI355X alone takes 22.8 ms, a token may take 15 ms"}
IMPOSSIBLE_LOAD = 0.05
TELL_EVERY_S = 30.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Run:
    """One of the runs.

    Attributes:
        accelerators: simulated ones; 0 when tokens are computed.
    """

    served: str
    scenario: str
    accelerators: int

    @property
    def name(self) -> str:
        size = f"-{self.accelerators}" if self.accelerators else ""
        return f"mlperf_runs-{self.served}-{self.scenario}{size}"

    @property
    def impossible(self) -> str:
        return IMPOSSIBLE.get((self.served, self.scenario), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("served", nargs="+", choices=tuple(SCENARIOS))
    parser.add_argument(
        "--scenario", action="append", choices=SCENARIOS[EMBEDDED], help="repeatable; all by default"
    )
    parser.add_argument("--accelerators", type=int, default=87, help="simulated ones")
    parser.add_argument("--baseline", action="store_true", help="one node first, for efficiency and ledger")
    parser.add_argument("--baselines", type=Path, help="a folder for baselines, which other runs may take again")
    parser.add_argument("--seconds", type=float, help="less than LoadGen's own: shows that it runs")
    parser.add_argument("--target-qps", type=float, help="on all nodes; default: what warming up or profiles show")
    parser.add_argument("--records", type=Path, help="a folder for the run records; none is left by default")
    parser.add_argument("--keep", type=Path, help="a folder for the results, one file for each run")
    parser.add_argument("--again", action="store_true", help="also what is kept already")
    parser.add_argument("--list", action="store_true", help="only say what would run")
    parser.add_argument("--port", type=int, default=8770)
    args = parser.parse_args()
    runs = wanted(args.served, args.scenario, args.accelerators)
    if args.list:
        for each in runs:
            print(f"{each.name}: {kept(each.name, args.keep) or 'to run'}")
        return
    lines: list[dict[str, Any]] = []
    for each in runs:
        path = None if args.again else kept(each.name, args.keep)
        try:
            lines.append(run(args, each) if path is None else json.loads(path.read_text()))
        except NfoldError as error:
            sys.exit(f"{each.name}: no figure: {error}")
        print(f"{each.name}: {path or 'done'}", flush=True)
        if path is None:
            keep(each.name, lines[-1], args.keep)
    wrong = [line["name"] for line in lines if not line["ok"]]
    print(json.dumps({"benchmark": "mlperf_runs", "ok": not wrong, "wrong": wrong, "runs": lines}))
    sys.exit(1 if wrong else 0)


def wanted(served: Sequence[str], scenarios: Sequence[str] | None, accelerators: int) -> list[Run]:
    return [
        Run(one, scenario, 0 if one == EMBEDDED else accelerators)
        for one in served
        for scenario in SCENARIOS[one]
        if not scenarios or scenario in scenarios
    ]


def run(args: argparse.Namespace, one: Run) -> dict[str, Any]:
    """What came of it."""
    from nfold.cluster.bench.order import BenchOrder
    from nfold.cluster.bench.record_store import archive_path
    from nfold.cluster.bench.scenarios import Scenario
    from nfold.cluster.bench.show import render_record
    from rich.console import Console

    tell = _teller(one)
    order = BenchOrder(
        workload="sums" if one.served == EMBEDDED else one.served,
        scenario=Scenario(one.scenario),
        min_duration_s=args.seconds,
        target_qps=_little_load(one) if one.impossible else args.target_qps,
        without_baseline=not args.baseline,
    )
    with tempfile.TemporaryDirectory() as scratch, service(args, one, tell) as config:
        from nfold.cluster.bench.bench import run_bench  # imports Ray, whose environment is settled now

        directory = (args.records or Path(scratch) / "records") / one.name
        home: Path = args.baselines or Path(scratch)
        record, _ = run_bench(config, home, config.models[0].name, order, directory, tell)
        Console(width=160).print(render_record(record))
        tell(f"record {directory} and {archive_path(directory)}" if args.records else "no record is left")
    return _line(one, record)


def _teller(one: Run) -> Tell:
    """Prints; of a run's own progress, a line now and then."""
    told_s = 0.0

    def tell(text: str) -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if " answered" in text and now_s - told_s < TELL_EVERY_S:
            return
        told_s = now_s
        print(f"  {one.served} {one.scenario}: {text}", flush=True)

    return tell


def _line(one: Run, record: Any) -> dict[str, Any]:
    from nfold.cluster.bench.published_beside import published_beside

    figures, accuracy = record.whole.typical, record.accuracy
    ledger = figures.ledger
    passed = None if accuracy is None else accuracy.passed
    return {
        "benchmark": "mlperf_runs",
        "name": one.name,
        "ok": bool(one.impossible) or (figures.counts and (record.simulated or passed is True)),
        "impossible": one.impossible,
        "served": one.served,
        "scenario": one.scenario,
        "simulated": record.simulated,
        "figure": figures.figure,
        "unit": figures.unit,
        "valid": figures.valid,
        "void": figures.void,
        "problems": figures.problems,
        "accuracy_passed": passed,
        "accuracy": None if accuracy is None else accuracy.scores,
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
        "client_roofline_tokens_per_s": figures.client.roofline_tokens_per_s,
        "efficiency": ledger and ledger.efficiency,
        "losses": ledger and ledger.loss_shares,
        "published": [asdict(beside) for beside in published_beside(record)],
        "provenance": provenance().model_dump(),
    }


def _little_load(one: Run) -> float:
    """Queries/s."""
    from nfold.models.engine.simulated.profile import load_profile

    published = load_profile(f"{ACCELERATOR}--{PROFILES[one.served]}").scenario("server")
    rate = published.figures["tokens_per_s"].value
    assert rate is not None
    return IMPOSSIBLE_LOAD * one.accelerators * rate / published.run.tokens_per_sample


@contextmanager
def service(args: argparse.Namespace, one: Run, tell: Tell) -> Generator[NfoldConfig]:
    """What is measured, running."""
    if one.served != EMBEDDED:
        settings = "server" if one.impossible else one.scenario.lower()
        config = fleet_config([(ACCELERATOR, one.accelerators)], PROFILES[one.served], settings, port=args.port)
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
    with serving(config, tell):
        yield config


if __name__ == "__main__":
    main()
