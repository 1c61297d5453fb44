"""`nfold verify` on services of this machine, against a record made there before: what it must say of each.

    python benchmarks/verify_live.py [--engine native] [--seconds 12] [--repeats 5] [--case slow ...]

    same       the service that the record is of            reproduced
    once       the same, one repeat                         inconclusive
    slow       one node of it takes 5 % longer              not reproduced, that node ranked first
    setting    an engine setting is another                 not reproduced, that setting ranked first

By default on simulated accelerators through Ray, Serve, sockets, router and LoadGen, where 5 % are in the engine's
steps. With `--engine native` the embedded model is really computed on two nodes, one of which is stopped for a part
of the time; on a machine that others use, that may stay inconclusive. Last line: JSON.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control_plane_cpu import ENGINES
from kept_results import keep
from local_service import processes_of, serving
from nfold.cluster.config import NfoldConfig
from nfold.cluster.provenance import provenance
from nfold.cluster.run_state import RunState
from nfold.models.errors import NfoldError
from stopping import Stops, stopping

if TYPE_CHECKING:
    from nfold.cluster.bench.record import RunRecord
    from nfold.cluster.bench.verdict import Judgement

EXPECTED = {
    "same": "reproduced",
    "once": "inconclusive",
    "slow": "not reproduced",
    "setting": "not reproduced",
}
# What must be ranked first, by its beginning.
FIRST = {"slow": "speed of ", "setting": "engine setting "}
ACCELERATOR, NUM_NODES = "H200", 4
WORKLOADS = {"simulated": "random-64-128", "native": "sums"}
SLOW_PERCENT = 5.0
# 5 % longer: of every such stretch, the rest is what there was before.
SLOWED = Stops(0.005, 0.105)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=tuple(WORKLOADS), default="simulated")
    parser.add_argument("--scenario", choices=("Offline", "Server", "SingleStream"), default="Offline")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each run")
    parser.add_argument("--warmup", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", action="append", choices=tuple(EXPECTED), help="repeatable; all by default")
    parser.add_argument("--keep", type=Path, help="a folder: also write the last line there, as kept results are")
    parser.add_argument("--port", type=int, default=8790)
    args = parser.parse_args()
    cases = args.case or list(EXPECTED)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            lines = run(args, cases, Path(scratch))
        except NfoldError as error:
            sys.exit(f"no verdict: {error}")
    wrong = [name for name, line in lines.items() if not line["ok"]]
    line = {
        "benchmark": "verify_live",
        "engine": args.engine,
        "simulated": args.engine == "simulated",
        "scenario": args.scenario,
        "seconds": args.seconds,
        "repeats": args.repeats,
        "ok": not wrong,
        "cases": lines,
        "provenance": provenance().model_dump(),
    }
    keep(f"verify_live-{args.engine}-{args.scenario}", line, args.keep)
    print(json.dumps(line))
    sys.exit(1 if wrong else 0)


def run(args: argparse.Namespace, cases: Sequence[str], scratch: Path) -> dict[str, Any]:
    """What came of each case. The record is made by the service that `same` and `once` run on."""
    found: dict[str, Any] = {}
    record: RunRecord | None = None
    with service(args, "same") as config:
        record = _record(args, config, scratch)
        for case in ("same", "once"):
            if case in cases:
                found[case] = _judged(args, case, record, config, scratch)
    for case in ("slow", "setting"):
        if case in cases:
            with service(args, case) as config:
                found[case] = _judged(args, case, record, config, scratch)
    return found


def _record(args: argparse.Namespace, config: NfoldConfig, scratch: Path) -> "RunRecord":
    from nfold.cluster.bench.bench import run_bench
    from nfold.cluster.bench.order import BenchOrder
    from nfold.cluster.bench.scenarios import Scenario

    order = BenchOrder(
        workload=WORKLOADS[args.engine],
        scenario=Scenario(args.scenario),
        repeats=args.repeats,
        min_duration_s=args.seconds,
        warmup_s=args.warmup,
        num_samples=512,
        accuracy=False,
        without_baseline=True,
    )
    record, _ = run_bench(config, scratch, config.models[0].name, order, scratch / "record", _tell)
    print(f"record: {[f'{figure:,.1f}' for figure in record.whole.figures]} {record.unit}", flush=True)
    return record


def _judged(
    args: argparse.Namespace, case: str, record: "RunRecord", config: NfoldConfig, scratch: Path
) -> dict[str, Any]:
    from nfold.cluster.bench.show_verdict import render_judgement
    from nfold.cluster.bench.verify import verify
    from rich.console import Console

    judgement, _ = verify(
        record,
        config,
        scratch,
        config.models[0].name,
        repeats=1 if case == "once" else args.repeats,
        data=None,
        margin=0.02,
        out=scratch / case,
        progress=_tell,
    )
    print(f"\n{case}: ", end="")
    Console(width=140).print(render_judgement(judgement))
    return _line(case, judgement)


def _line(case: str, judgement: "Judgement") -> dict[str, Any]:
    differences = [str(each) for each in judgement.differences]
    first = FIRST.get(case)
    ranked = first is None or (bool(differences) and differences[0].startswith(first))
    return {
        "ok": judgement.verdict.value == EXPECTED[case] and ranked,
        "expected": EXPECTED[case],
        "said": judgement.sentence,
        "measures": {
            name: {"ratio": each.ratio, "low": each.low, "high": each.high, "verdict": each.verdict}
            for name, each in judgement.measures.items()
        },
        "differences": differences[:3],
    }


@contextmanager
def service(args: argparse.Namespace, case: str) -> Generator[NfoldConfig]:
    """What a case runs on."""
    config = simulated_config(args.port, case) if args.engine == "simulated" else native_config(args.port, case)
    with serving(config, _tell) as state:
        if args.engine == "native" and case == "slow":
            with stopping(_a_replica(state), SLOWED):
                yield config
        else:
            yield config


def simulated_config(port: int, case: str) -> NfoldConfig:
    faults = [{"kind": "slow", "percent": SLOW_PERCENT, "hosts": [1]}] if case == "slow" else []
    scenario = "server" if case == "setting" else "offline"
    simulated = {"model_profile": "gpt-oss-120b", "scenario": scenario, "faults": faults}
    nodes = {"accelerator": ACCELERATOR, "nodes": NUM_NODES, "accelerators": 1, "hosts_per_ray_node": 4}
    return _config(
        port,
        {
            "name": "verified",
            "path": "simulated",
            "pools": [{"accelerator": ACCELERATOR}],
            "engine": {"engine": "simulated", "max_model_len": 2048, "simulated": simulated},
        },
        {"nodes": 0, "simulated_nodes": [nodes]},
    )


def native_config(port: int, case: str) -> NfoldConfig:
    engine = {"prefix_cache": False, "max_num_seqs": 16 if case == "setting" else 32}
    return _config(port, {"name": "verified", "pools": [{"num_replicas": 2}], "engine": engine}, {"nodes": 2})


def _config(port: int, model: dict[str, Any], local: dict[str, Any]) -> NfoldConfig:
    return NfoldConfig.model_validate(
        {
            "name": "verified",
            "http": {"port": port},
            "metrics": {"port": port + 1},
            "models": [model],
            "cluster": {"local": local},
        }
    )


def _a_replica(state: RunState) -> int:
    """Process of the last replica that started."""
    return max(process.pid for process, part in processes_of(state) if part == ENGINES)


def _tell(text: str) -> None:
    if " answered" not in text:
        print(f"  {text}", flush=True)


if __name__ == "__main__":
    main()
