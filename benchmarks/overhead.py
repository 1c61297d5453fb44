"""What the serving path costs: the bare engine against router and HTTP gateway, in one run.

    python benchmarks/overhead.py [--checkpoint DIR] [--slots 32] [--window 12] [--rounds 7]

The same model runs twice on the same core: bare in a process of its own, and as the one replica of a local cluster.
The two take turns, so one always idles while the other works; everything else is kept to the other cores. Paths:

    bare     engine.step() in a loop, nothing around it
    router   this process's Router over ZeroMQ, no HTTP
    http     streaming clients of the OpenAI API in a process of their own

Two processes of one engine differ by a few percent in their steps, with each start, by where their memory came to
lie: `steps differ` says by how much here, and is no part of what the path adds.

tokens/s at a closed loop of a quarter more requests than the engine has slots, so that none is ever empty; TTFT one
request at a time, the paths in turn, "added" being the median of the differences. The clock of http runs at a
socket, from a ready request's bytes to the first token's: a client's HTTP library is not the service's. Last line:
JSON.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from helper_process import HelperProcess
from local_service import serving
from overhead_load import MODEL, make_prompts, output_lengths
from workload import SMALL, make_checkpoint, vocab_size_of

if TYPE_CHECKING:
    from nfold.cluster.run_state import RunState
    from nfold.deployments.router import Router

GOAL_SHARE = 0.97
GOAL_ADDED_TTFT_MS = 3.0


@dataclass(frozen=True)
class Figures:
    """One round of one path."""

    tokens_per_s: float
    ttfts_ms: list[float]
    step_ms: float  # its engine's mean per sample

    @property
    def ttft_p50_ms(self) -> float:
        return statistics.median(self.ttfts_ms)


class Worker(HelperProcess):
    """It is asked for figures."""

    def figure(self, **question: object) -> float:
        return self.ask(question)["figure"]


class RouterPath:
    """The service's one replica behind a Router of this process."""

    def __init__(self, service: str, vocab_size: int) -> None:
        from nfold.cluster.measure import measuring_router
        from nfold.deployments import discovery

        self._prompts, self._lengths = make_prompts(vocab_size), output_lengths()
        # Opened for each phase: a router that is not polled counts as dead.
        self.open = lambda: measuring_router(discovery.list_replicas(service), discovery.service_keys(service))

    def tokens_per_s(self, args: argparse.Namespace) -> float:
        from nfold.cluster.arrivals import ClosedLoop
        from nfold.cluster.load import LoadSettings, run_load
        from nfold.cluster.workloads import Workload
        from nfold.models.engine.protocol import SamplingParams

        sampling = [SamplingParams(max_tokens=length, ignore_eos=True) for length in self._lengths]
        workload = Workload("overhead", self._prompts, sampling)
        settings = LoadSettings(warmup_s=args.warmup, window_s=args.window)
        with self.open() as router:
            return run_load(router, MODEL, workload, ClosedLoop(args.concurrency), settings).output_tokens_per_s

    def ttft_ms(self, router: "Router", row: int) -> float:
        from nfold.models.engine.protocol import SamplingParams

        chunks: list[object] = []
        router.poll(0.0)
        begin = time.perf_counter()
        sampling = SamplingParams(max_tokens=1, ignore_eos=True)
        router.submit(MODEL, self._prompts[row % len(self._prompts)], sampling, chunks.append)
        while not chunks:
            router.poll(1.0)
        return 1e3 * (time.perf_counter() - begin)

    def busy_s(self, router: "Router") -> float:
        """Of the replica's engine in steps, until now."""
        from nfold.deployments.engine_service import ServiceSettings

        until = time.perf_counter() + 2 * ServiceSettings().status_s  # it tells once in so long
        while time.perf_counter() < until:
            router.poll(0.1)
        [replica] = router.snapshot().replicas
        assert replica.status is not None
        return replica.status.busy_s


def measure_all(args: argparse.Namespace) -> list[dict[str, Figures]]:
    """One dict per round: figures by path."""
    from nfold.cluster.config import ClusterConfig, LocalClusterConfig, NfoldConfig
    from nfold.cluster.service import api_url
    from nfold.deployments.config import EngineConfig, HttpConfig, MetricsConfig, ServedModelConfig

    engine = EngineConfig(dtype=args.dtype, prefix_cache=False, max_num_seqs=args.slots)
    config = NfoldConfig(
        name="overhead",
        http=HttpConfig(port=args.port),
        metrics=MetricsConfig(port=args.port + 1),
        models=[ServedModelConfig(name=MODEL, path=str(args.checkpoint), engine=engine)],
        cluster=ClusterConfig(local=LocalClusterConfig(nodes=1, cores_per_node=1)),
    )
    engine_core, *other_cores = sorted(os.sched_getaffinity(0))
    vocab_size = vocab_size_of(args.checkpoint)
    bare = ("--checkpoint", str(args.checkpoint), "--dtype", args.dtype, "--slots", str(args.slots))
    http = ("--url", api_url(config), "--vocab", str(vocab_size))
    with serving(config, lambda text: print(f"  {text}", flush=True)) as state:
        leave_alone(engine_core, other_cores, state)
        with (
            Worker("overhead_bare.py", *bare, "--core", str(engine_core)) as bare_worker,
            Worker("overhead_http.py", *http) as http_worker,
        ):
            workers, router = {"bare": bare_worker, "http": http_worker}, RouterPath(config.name, vocab_size)
            return [measure_round(turn, workers, router, args) for turn in range(1, args.rounds + 1)]


def leave_alone(engine_core: int, other_cores: list[int], state: "RunState") -> None:
    """Keep this process and the service's, but the engine's own, off its core, as if it were an accelerator."""
    from nfold.cluster.processes import session_processes
    from nfold.deployments.cores import pin_process

    if not other_cores or state.local is None:
        return
    pin_process(other_cores)
    for process in session_processes(state.local.supervisor_pid):
        if os.sched_getaffinity(process.pid) != {engine_core}:
            pin_process(other_cores, process.pid)


def measure_round(
    turn: int, workers: dict[str, Worker], router: RouterPath, args: argparse.Namespace
) -> dict[str, Figures]:
    load = {"concurrency": args.concurrency, "warmup_s": args.warmup, "window_s": args.window}
    rates = {
        "bare": workers["bare"].figure(kind="tokens_per_s", **load),
        "router": router.tokens_per_s(args),
        "http": workers["http"].figure(kind="tokens_per_s", **load),
    }
    ttfts: dict[str, list[float]] = {path: [] for path in rates}
    with router.open() as open_router:
        bare_s, served_s = -workers["bare"].figure(kind="busy_s"), -router.busy_s(open_router)
        for row in range(args.samples):  # path after path, so that a slower moment of the machine hits all alike
            ttfts["bare"].append(workers["bare"].figure(kind="ttft", row=row))
            ttfts["router"].append(router.ttft_ms(open_router, row))
            ttfts["http"].append(workers["http"].figure(kind="ttft", row=row))
        bare_s += workers["bare"].figure(kind="busy_s")
        served_s += router.busy_s(open_router)
    bare_ms, served_ms = 1e3 * bare_s / args.samples, 1e3 * served_s / (2 * args.samples)
    step_ms = {"bare": bare_ms, "router": served_ms, "http": served_ms}
    figures = {path: Figures(rates[path], ttfts[path][1:], step_ms[path]) for path in rates}
    for path, each in figures.items():
        print(
            f"  round {turn}  {path:<7}{each.tokens_per_s:9.1f} tokens/s   TTFT {each.ttft_p50_ms:7.2f} ms",
            flush=True,
        )
    return figures


def report(rounds: list[dict[str, Figures]], args: argparse.Namespace) -> None:
    summary: dict[str, object] = {"model": args.checkpoint.name, "dtype": args.dtype, "rounds": args.rounds}
    summary |= {"slots": args.slots, "concurrency": args.concurrency}
    print(f"\n{'path':<8}{'tokens/s':>10}{'of bare':>9}{'TTFT p50':>11}{'added':>10}")
    for path in ("bare", "router", "http"):
        rate = statistics.median(figures[path].tokens_per_s for figures in rounds)
        share = statistics.median(figures[path].tokens_per_s / figures["bare"].tokens_per_s for figures in rounds)
        ttft = statistics.median(ms for figures in rounds for ms in figures[path].ttfts_ms)
        pairs = [pair for each in rounds for pair in zip(each[path].ttfts_ms, each["bare"].ttfts_ms, strict=True)]
        added = statistics.median(ms - bare_ms for ms, bare_ms in pairs)
        print(f"{path:<8}{rate:>10.1f}{share:>8.1%}{ttft:>8.2f} ms{added:>7.2f} ms")
        summary |= {f"{path}_tokens_per_s": rate, f"{path}_ttft_p50_ms": ttft}
        summary |= {f"{path}_share": share, f"{path}_added_ttft_ms": added}
    differences = [each["http"].step_ms - each["bare"].step_ms for each in rounds]
    summary["steps_differ_ms"] = statistics.median(differences)
    print(f"steps differ: those of the served engine take {summary['steps_differ_ms']:+.2f} ms, whatever the path")
    print(f"goal: http at least {GOAL_SHARE:.0%} of bare, at most {GOAL_ADDED_TTFT_MS:g} ms added")
    from nfold.cluster.provenance import provenance

    print(json.dumps(summary | {"provenance": provenance().model_dump()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, help="a Llama in Hugging Face form; default: 168M random weights"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--slots", type=int, default=32, help="requests in one engine step")
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds")
    parser.add_argument("--window", type=float, default=12.0, help="seconds")
    parser.add_argument("--samples", type=int, default=100, help="requests per TTFT figure")
    parser.add_argument("--rounds", type=int, default=7, help="the machine drifts: fewer say little")
    parser.add_argument("--port", type=int, default=8730)
    args = parser.parse_args()
    args.concurrency = args.slots + args.slots // 4
    with tempfile.TemporaryDirectory() as directory:
        if args.checkpoint is None:
            args.checkpoint = make_checkpoint(Path(directory) / "small-llama", SMALL, args.dtype)
        args.checkpoint = args.checkpoint.resolve()
        report(measure_all(args), args)


if __name__ == "__main__":
    main()
