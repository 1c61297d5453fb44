"""What the serving path costs: the bare engine against router and HTTP gateway, in one run.

    python benchmarks/overhead.py [--checkpoint DIR] [--concurrency 32] [--window 15] [--rounds 3]

The same model runs twice on the same core: bare in a process of its own, and as the one replica of a local cluster.
The two take turns, so one always idles while the other works, and everything else has the other cores. Paths:

    bare     engine.step() in a loop, nothing around it
    router   this process's Router over ZeroMQ, no HTTP
    http     streaming clients of the OpenAI API in a process of their own

tokens/s at a closed loop of `--concurrency` requests; TTFT one request at a time. Medians over the rounds. Last
line: JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from workload import SMALL, make_checkpoint, vocab_size_of

GOAL_SHARE = 0.97
GOAL_ADDED_TTFT_MS = 3.0
MODEL = "bench"


class Worker:
    """A helper process that answers one JSON line per JSON line."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **question: object) -> dict:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a helper process ended with {self._process.wait(10)}")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def router_measurer(
    service: str, workload_seed: int, vocab_size: int
) -> Callable[[str, argparse.Namespace], float]:
    """Measures through a Router of this process, connected to the running service's one replica."""
    from nfold.cluster.arrivals import ClosedLoop
    from nfold.cluster.load import LoadSettings, run_load
    from nfold.cluster.measure import measuring_router
    from nfold.cluster.workloads import Workload
    from nfold.deployments import discovery
    from nfold.models.engine.protocol import SamplingParams
    from overhead_load import make_prompts, output_lengths

    prompts = make_prompts(vocab_size, workload_seed)
    lengths = output_lengths(workload_seed)

    def measure(kind: str, args: argparse.Namespace) -> float:
        sampling = [SamplingParams(max_tokens=1 if kind == "ttft" else n, ignore_eos=True) for n in lengths]
        workload = Workload("overhead", prompts, sampling)
        with measuring_router(discovery.list_replicas(service), discovery.service_keys(service)) as router:
            if kind == "ttft":
                settings = LoadSettings(warmup_s=0.0, max_requests=args.samples + 1, window_s=600)
                result = run_load(router, MODEL, workload, ClosedLoop(1), settings)
                return 1e3 * result.ttft_s.p50
            settings = LoadSettings(warmup_s=args.warmup, window_s=args.window)
            return run_load(router, MODEL, workload, ClosedLoop(args.concurrency), settings).output_tokens_per_s

    return measure


def measure_all(args: argparse.Namespace, home: Path) -> dict[str, dict[str, list[float]]]:
    from nfold.cluster.config import ClusterConfig, LocalClusterConfig, NfoldConfig
    from nfold.cluster.service import api_url, start_service, stop_service
    from nfold.deployments.config import EngineConfig, HttpConfig, MetricsConfig, ServedModelConfig

    engine = EngineConfig(dtype=args.dtype, prefix_cache=False, max_num_seqs=args.concurrency)
    config = NfoldConfig(
        name="overhead",
        http=HttpConfig(port=args.port),
        metrics=MetricsConfig(port=args.port + 1),
        models=[ServedModelConfig(name=MODEL, path=str(args.checkpoint), engine=engine)],
        cluster=ClusterConfig(local=LocalClusterConfig(nodes=1, cores_per_node=1)),
    )
    core = min(os.sched_getaffinity(0))
    state = start_service(config, home, lambda text: print(f"  {text}", flush=True))
    workers: dict[str, Worker] = {}
    try:
        vocab_size = vocab_size_of(args.checkpoint)
        here = Path(__file__).parent
        common = (
            "--checkpoint",
            str(args.checkpoint),
            "--dtype",
            args.dtype,
            "--concurrency",
            str(args.concurrency),
        )
        workers["bare"] = Worker(str(here / "overhead_bare.py"), *common, "--core", str(core))
        workers["http"] = Worker(
            str(here / "overhead_http.py"), "--url", api_url(config), "--vocab", str(vocab_size)
        )
        router = router_measurer(config.name, 0, vocab_size)
        figures: dict[str, dict[str, list[float]]] = {}
        for turn in range(args.rounds):
            for path in ("bare", "router", "http"):
                for kind in ("tokens_per_s", "ttft"):
                    if path == "router":
                        figure = router(kind, args)
                    else:
                        figure = workers[path].ask(
                            kind=kind,
                            concurrency=args.concurrency,
                            warmup_s=args.warmup,
                            window_s=args.window,
                            samples=args.samples,
                        )["figure"]
                    figures.setdefault(path, {}).setdefault(kind, []).append(figure)
                last = {kind: values[-1] for kind, values in figures[path].items()}
                print(
                    f"  round {turn + 1}  {path:<7}{last['tokens_per_s']:9.1f} tokens/s   "
                    f"TTFT {last['ttft']:7.2f} ms",
                    flush=True,
                )
        return figures
    finally:
        for worker in workers.values():
            worker.close()
        stop_service(state, home, lambda text: None)


def report(figures: dict[str, dict[str, list[float]]], args: argparse.Namespace) -> None:
    median = {
        path: {kind: statistics.median(values) for kind, values in kinds.items()} for path, kinds in figures.items()
    }
    bare = median["bare"]
    print(f"\n{'path':<8}{'tokens/s':>10}{'of bare':>9}{'TTFT p50':>11}{'added':>10}")
    for path, kinds in median.items():
        share, added = kinds["tokens_per_s"] / bare["tokens_per_s"], kinds["ttft"] - bare["ttft"]
        print(f"{path:<8}{kinds['tokens_per_s']:>10.1f}{share:>8.1%}{kinds['ttft']:>8.2f} ms{added:>7.2f} ms")
    print(f"goal: http at least {GOAL_SHARE:.0%} of bare, at most {GOAL_ADDED_TTFT_MS:g} ms added")
    summary: dict[str, object] = {
        "model": args.checkpoint.name,
        "dtype": args.dtype,
        "concurrency": args.concurrency,
    }
    for path, kinds in median.items():
        summary[f"{path}_tokens_per_s"] = kinds["tokens_per_s"]
        summary[f"{path}_ttft_p50_ms"] = kinds["ttft"]
    summary["http_share"] = median["http"]["tokens_per_s"] / bare["tokens_per_s"]
    summary["http_added_ttft_ms"] = median["http"]["ttft"] - bare["ttft"]
    print(json.dumps(summary))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, help="a Llama in Hugging Face form; default: 168M random weights"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds")
    parser.add_argument("--window", type=float, default=15.0, help="seconds")
    parser.add_argument("--samples", type=int, default=40, help="requests per TTFT figure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8730)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if args.checkpoint is None:
            args.checkpoint = make_checkpoint(Path(directory) / "small-llama", SMALL, args.dtype)
        args.checkpoint = args.checkpoint.resolve()
        report(measure_all(args, Path(directory) / "home"), args)


if __name__ == "__main__":
    main()
