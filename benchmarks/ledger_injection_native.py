"""Known losses on the real engine, on this machine's cores: two replicas of the embedded model, in processes of
their own, behind the real data path and this process's router.

    held back    one of them is stopped (SIGSTOP) for half a second every two and a half
    small_kv     one of them has a small KV cache
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from nfold.cluster.arrivals import ClosedLoop
from nfold.cluster.ledger import ModelCounters, Yardstick, fit_curve, spans, yardstick_of
from nfold.cluster.load import LoadSettings, run_load
from nfold.cluster.load_result import LoadResult
from nfold.cluster.measure import measuring_router, saturating_concurrency
from nfold.cluster.service_view import yardstick_name
from nfold.cluster.workloads import make_workload
from nfold.deployments.addresses import ReplicaAddress, ReplicaIdentity
from nfold.deployments.config import ServedModelConfig

MODEL = "sums"
WORKLOAD = "random-32-64"
NUM_SLOTS = 32
# Holds some ten of the workload's requests, of a cache that holds all.
SMALL_KV_BYTES = 2 << 20
STOPPED_S, EVERY_S = 0.5, 2.5
LOADS, LOAD_S, WINDOW_S, WARM_S = (1, 4, 16), 3.0, 20.0, 3.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class NativeRun:
    """What came of one load.

    Attributes:
        stopped_s: that one replica stood still in the window.
    """

    injections: tuple[str, ...]
    samples: tuple[ModelCounters, ...]
    num_tokens: int
    window_s: float
    stopped_s: float = 0.0


def run_native(tell: Tell) -> tuple[str, Yardstick, list[NativeRun]]:
    """The yardstick's name, the yardstick, and the runs, of which the first is without injections."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with _replica(0, cores[0], None) as (one, pid), _replica(1, cores[-1], None) as (other, _):
        tell("step times and saturation of two replicas")
        few = [_load([one, other], load, LOAD_S) for load in LOADS]
        clean = _load([one, other], None, WINDOW_S)
        curve = fit_curve([span.steps for result in (*few, clean) for span in spans(result.samples)])
        assert curve is not None, "there were steps"
        in_flight = np.mean([sample.num_in_flight - sample.num_queued for sample in clean.samples]) / 2
        yardstick = yardstick_of(spans(clean.samples), float(in_flight), curve)
        again = _load([one, other], None, WINDOW_S)
        tell("one of them stopped now and then")
        with _stopping(pid) as stops:
            held = _load([one, other], None, WINDOW_S)
        stopped_s = _within(stops, held.samples[0].time_s, held.samples[-1].time_s)
    with _replica(2, cores[0], SMALL_KV_BYTES) as (small, _), _replica(3, cores[-1], None) as (whole, _):
        tell("one of them with a small KV cache")
        short = _load([small, whole], None, WINDOW_S)
    runs = [_run((), again), _run(("slow_20",), held, stopped_s), _run(("small_kv",), short)]
    return yardstick_name("CPU", 1), yardstick, runs


def _run(injections: tuple[str, ...], result: LoadResult, stopped_s: float = 0.0) -> NativeRun:
    return NativeRun(injections, result.samples, result.num_output_tokens, result.window_s, stopped_s)


def _load(replicas: Sequence[ReplicaAddress], load: int | None, seconds: float) -> LoadResult:
    """So many requests in flight per replica; None saturates."""
    directory = ServedModelConfig(name=MODEL).directory
    workload = make_workload(WORKLOAD, directory, max_model_len=replicas[0].max_model_len)
    concurrency = (load or saturating_concurrency(replicas[0])) * len(replicas)
    with measuring_router(replicas, None, timeout_s=60.0) as router:
        settings = LoadSettings(warmup_s=WARM_S, window_s=seconds)
        return run_load(router, MODEL, workload, ClosedLoop(concurrency), settings)


@contextmanager
def _stopping(pid: int) -> Generator[list[tuple[float, float]]]:
    """Stops the process now and then; yields when, as it goes."""
    stops: list[tuple[float, float]] = []
    ended = threading.Event()

    def stop_now_and_then() -> None:
        while not ended.wait(EVERY_S - STOPPED_S):
            begin_s = time.monotonic()
            os.kill(pid, signal.SIGSTOP)
            time.sleep(STOPPED_S)
            os.kill(pid, signal.SIGCONT)
            stops.append((begin_s, time.monotonic()))

    thread = threading.Thread(target=stop_now_and_then)
    thread.start()
    try:
        yield stops
    finally:
        ended.set()
        thread.join()


def _within(stops: Sequence[tuple[float, float]], begin_s: float, end_s: float) -> float:
    return sum(max(0.0, min(stop, end_s) - max(start, begin_s)) for start, stop in stops)


@contextmanager
def _replica(index: int, core: int, kv_cache_bytes: int | None) -> Generator[tuple[ReplicaAddress, int]]:
    """One replica in a process of its own, on one core."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, index, core, kv_cache_bytes), daemon=True)
    process.start()
    there.close()
    try:
        address: ReplicaAddress = here.recv()
        assert process.pid is not None, "it was started"
        yield address, process.pid
    finally:
        here.close()
        process.join(20.0)
        if process.is_alive():
            process.kill()


def _serve(parent: Connection, index: int, core: int, kv_cache_bytes: int | None) -> None:
    """In the replica's process, until the parent closes its end."""
    import torch
    from nfold.deployments.engine_service import EngineService
    from nfold.models.engine.native import NativeEngine
    from nfold.models.engine.settings import EngineSettings
    from nfold.models.parallel import TpGroup

    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    directory: Path = ServedModelConfig(name=MODEL).directory
    settings = EngineSettings(
        model_dir=directory, max_num_seqs=NUM_SLOTS, kv_cache_bytes=kv_cache_bytes, prefix_cache=False
    )
    engine = NativeEngine.load(settings, TpGroup.single(), torch.device("cpu"))
    identity = ReplicaIdentity(
        replica_id=f"replica-{index}", model=MODEL, pool="sums", accelerator="CPU", node_id=f"core-{core}"
    )
    service = EngineService(engine, identity, None)
    parent.send(service.address)

    def stop_when_closed() -> None:
        parent.poll(None)
        service.stop()

    threading.Thread(target=stop_when_closed, daemon=True).start()
    service.run()
    engine.close()


def known_losses(yardstick: Yardstick, run: NativeRun) -> dict[str, float]:
    """Tokens lost for reasons whose size the injections themselves say."""
    price_s = yardstick.prefill_token_s
    lost = {"slow step": yardstick.tokens_per_s * run.stopped_s, "recompute": 0.0}
    for old, new in zip(run.samples[0].replicas, run.samples[-1].replicas, strict=True):
        again = new.steps.num_recomputed_tokens - old.steps.num_recomputed_tokens
        lost["recompute"] += yardstick.tokens_per_s * again * price_s
    return lost
