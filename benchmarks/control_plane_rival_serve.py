"""The rival of `control_plane.py rival`: the same simulated engines behind plain Ray Serve streaming handles.

    python benchmarks/control_plane_rival_serve.py --mode as-it-comes|best [--open 16,64] [--hosts 1] [--engines 8]

A Serve deployment of engine hosts; `generate` is an async generator. `as-it-comes` is Serve with nothing set: one
chunk per step and request. `best` has throughput mode, values sent by gRPC instead of through the object store, and
ten tokens per chunk after the first. A closed loop of streams from this process, one figure per load. Last line:
JSON.
"""

import argparse
import asyncio
import json
import logging
import os
import tempfile
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from control_plane_cpu import CpuMeter, service_processes
from control_plane_requests import Prompts, Requests, backlog
from nfold.models.engine.protocol import I32, SamplingParams, SubmitBatch
from nfold.models.engine.simulated.engine import SimulatedEngine
from nfold.models.engine.simulated.profile import StepTimeProfile, load_profile

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

APPLICATION = "rival"
DEPLOYMENT = "EngineHost"
BEST_TOKENS_PER_CHUNK = 10
BEST_ENVIRONMENT = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
BOTH_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


class EngineHost:
    """Several simulated engines on one event loop; each request goes to the one with the fewest."""

    def __init__(self, profile: str, scenario: str, num_engines: int, tokens_per_chunk: int) -> None:
        self._engines = [SimulatedEngine(load_profile(profile), scenario) for _ in range(num_engines)]
        self._wakes = [asyncio.Event() for _ in self._engines]
        self._in_flight = [0] * num_engines
        self._queues: dict[int, asyncio.Queue[tuple[int, int]]] = {}
        self._next_id = 0
        self._tokens_per_chunk = tokens_per_chunk
        self._tasks: list[asyncio.Task[None]] = []

    async def generate(self, prompt_ids: I32, max_tokens: int, seed: int) -> AsyncGenerator[list[int]]:
        """Chunks of token ids; the first has one token, so that nobody waits for it."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._drive(index)) for index in range(len(self._engines))]
        index = min(range(len(self._engines)), key=self._in_flight.__getitem__)
        request_id, self._next_id = self._next_id, self._next_id + 1
        queue = self._queues[request_id] = asyncio.Queue()
        self._in_flight[index] += 1
        self._engines[index].submit(
            SubmitBatch.build([request_id], [prompt_ids], [SamplingParams(max_tokens=max_tokens, seed=seed)])
        )
        self._wakes[index].set()
        chunk, wanted, finish = list[int](), 1, 0
        while not finish:
            token, finish = await queue.get()
            chunk.append(token)
            if finish or len(chunk) >= wanted:
                yield chunk
                chunk, wanted = [], self._tokens_per_chunk
        self._in_flight[index] -= 1
        del self._queues[request_id]

    async def _drive(self, index: int) -> None:
        engine, wake = self._engines[index], self._wakes[index]
        while True:
            due_s = engine.next_step_at()
            if due_s is None:
                wake.clear()
                await wake.wait()
                continue
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            outputs = engine.step()
            rows = zip(
                outputs.request_ids.tolist(), outputs.token_ids.tolist(), outputs.finish.tolist(), strict=True
            )
            for request_id, token, finish in rows:
                self._queues[request_id].put_nowait((token, finish))


@dataclass(frozen=True, slots=True)
class RivalFigures:
    """Of one load.

    Attributes:
        num_open: streams open at all times.
        chunks_per_s: items that came through the handle.
        ttft_p99_ms, tpot_p50_ms: as seen by this process.
    """

    num_open: int
    tokens_per_s: float
    chunks_per_s: float
    queries_per_s: float
    ttft_p99_ms: float | None
    tpot_p50_ms: float | None
    router_cpu_s_per_million_tokens: float
    engine_cpu_s_per_million_tokens: float
    other_cpu_s_per_million_tokens: float
    machine_busy_share: float

    @property
    def total_cpu_s_per_million_tokens(self) -> float:
        """Of the two parts that do the work; Ray's own processes are left out on both sides."""
        return self.router_cpu_s_per_million_tokens + self.engine_cpu_s_per_million_tokens


class Streams:
    """A closed loop of streams over one handle."""

    def __init__(self, handle: "DeploymentHandle", requests: Requests, prompts: Prompts) -> None:
        self._handle = handle
        self._requests = requests
        self._prompts = prompts
        self._next = 0
        self.num_tokens = self.num_chunks = self.num_ended = 0
        self.ttfts_s: deque[float] = deque(maxlen=100_000)
        self.tpots_s: deque[float] = deque(maxlen=100_000)
        self._stop = False

    async def run(self, num_open: int, meter: CpuMeter, warmup_s: float, window_s: float) -> RivalFigures:
        self._stop = False
        tasks = [asyncio.create_task(self._loop()) for _ in range(num_open)]
        await asyncio.sleep(warmup_s)
        begin, cpu = self._totals(), meter.read()
        self.ttfts_s.clear()
        self.tpots_s.clear()
        await asyncio.sleep(window_s)
        used = meter.read() - cpu
        tokens, chunks, ended = (now - then for now, then in zip(self._totals(), begin, strict=True))
        ttfts_s, tpots_s = list(self.ttfts_s), list(self.tpots_s)
        self._stop = True
        await asyncio.gather(*tasks)
        millions = max(tokens, 1) / 1e6
        return RivalFigures(
            num_open=num_open,
            tokens_per_s=tokens / used.wall_s,
            chunks_per_s=chunks / used.wall_s,
            queries_per_s=ended / used.wall_s,
            ttft_p99_ms=float(np.percentile(ttfts_s, 99)) * 1e3 if ttfts_s else None,
            tpot_p50_ms=float(np.percentile(tpots_s, 50)) * 1e3 if tpots_s else None,
            router_cpu_s_per_million_tokens=used.router / millions,
            engine_cpu_s_per_million_tokens=used.engines / millions,
            other_cpu_s_per_million_tokens=used.others / millions,
            machine_busy_share=used.busy_share,
        )

    def _totals(self) -> tuple[int, int, int]:
        return self.num_tokens, self.num_chunks, self.num_ended

    async def _loop(self) -> None:
        while not self._stop:
            await self._one()

    async def _one(self) -> None:
        wanted, row = self._requests, self._next % len(self._requests)
        self._next += 1
        prompt = self._prompts.take(int(wanted.prompt_lens[row]))
        begin_s, first_s, count = time.perf_counter(), 0.0, 0
        stream: Any = self._handle.generate.remote(prompt, int(wanted.max_tokens[row]), int(wanted.seeds[row]))
        async for chunk in stream:
            self.num_tokens += len(chunk)
            self.num_chunks += 1
            count += len(chunk)
            if not first_s:
                first_s = time.perf_counter()
                self.ttfts_s.append(first_s - begin_s)
        self.num_ended += 1
        if count > 1:
            self.tpots_s.append((time.perf_counter() - first_s) / (count - 1))


async def measure(args: argparse.Namespace, profile: StepTimeProfile) -> list[RivalFigures]:
    """One figure per load."""
    from ray import serve

    handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
    handle = (
        handle.options(stream=True, _by_reference=False) if args.mode == "best" else handle.options(stream=True)
    )
    requests = backlog(profile, args.requests, seed=args.seed)
    streams = Streams(handle, requests, Prompts(profile.vocab_size))
    children = psutil.Process().children(recursive=True)
    meter = CpuMeter(service_processes(children, lambda command: f"ServeReplica:{APPLICATION}" in command))
    assert meter.num_engine_processes == args.hosts, "every host of engines must be counted"
    found: list[RivalFigures] = []
    for num_open in args.open:
        figures = await streams.run(num_open, meter, args.warmup, args.window)
        found.append(figures)
        print(
            f"  {args.mode:<12}{num_open:6} streams {figures.tokens_per_s:10,.0f} tokens/s (simulated)   CPU per "
            f"million tokens: router {figures.router_cpu_s_per_million_tokens:7.1f} s, engines "
            f"{figures.engine_cpu_s_per_million_tokens:7.1f} s   TPOT {figures.tpot_p50_ms or 0:.1f} ms",
            flush=True,
        )
    return found


def serve_engines(args: argparse.Namespace, directory: str) -> list[RivalFigures]:
    """Start Ray and Serve for this process alone, measure, and end them."""
    environment = BOTH_ENVIRONMENT | (BEST_ENVIRONMENT if args.mode == "best" else {})
    os.environ.update(environment | {"RAY_TMPDIR": directory})
    import ray
    from ray import serve

    ray.init(
        address="local",
        num_cpus=args.hosts + 2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=256 << 20,
    )
    try:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        tokens_per_chunk = BEST_TOKENS_PER_CHUNK if args.mode == "best" else 1
        host: Any = serve.deployment(
            name=DEPLOYMENT,
            num_replicas=args.hosts,
            max_ongoing_requests=1_000_000,
            ray_actor_options={"num_cpus": 0},
        )(EngineHost)
        application = host.bind(args.profile, args.scenario, args.engines, tokens_per_chunk)
        serve.start(proxy_location="Disabled")
        serve.run(application, name=APPLICATION, route_prefix=None)
        return asyncio.run(measure(args, load_profile(args.profile)))
    finally:
        ray.shutdown()  # and all that it started: nothing else uses this cluster


def _loads(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("as-it-comes", "best"), required=True)
    parser.add_argument("--profile", default="MI355X--llama-2-70b")
    parser.add_argument("--scenario", default="server")
    parser.add_argument("--hosts", type=int, default=1, help="Serve replicas")
    parser.add_argument("--engines", type=int, default=8, help="on each")
    parser.add_argument(
        "--open", type=_loads, default=[16, 64], help="streams open at once, one load after another"
    )
    parser.add_argument("--requests", type=int, default=20_000, help="different ones")
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds")
    parser.add_argument("--window", type=float, default=10.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rival-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        figures = serve_engines(args, directory)
    each = [asdict(one) | {"total_cpu_s_per_million_tokens": one.total_cpu_s_per_million_tokens} for one in figures]
    print(json.dumps({"mode": args.mode, "simulated": True, "loads": each}))


if __name__ == "__main__":
    main()
