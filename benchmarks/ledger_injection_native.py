"""Known losses on the real engine, on this machine's cores: replicas of the embedded model, in processes of their
own, behind the real data path and this process's router.

    held_back      one replica of two is stopped (SIGSTOP) for 20 ms of every 100
    small_kv       one replica of two has a small KV cache
    paused_rank    the second rank of a replica with two is stopped for half a second of every two and a half

A machine's speed drifts, by a third within a minute where it is shared. So loads with and without take turns, now
one first and now the other, each turn also has loads of few requests, for the step times of small batches, and an
injection's yardstick is what its own turns without it told. What comes out less is the truth, as all else is the
same in both kinds of turns: of the replica that is hit, all of it is the injection's; of the other, on a core that
may share caches and more with the first one's, steps are slower or faster. `nothing` has turns without any, so all
that comes out less or more is of the latter kind.
"""

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from nfold.cluster.arrivals import ClosedLoop
from nfold.cluster.ledger import (
    ModelCounters,
    StepCurve,
    Yardstick,
    fit_curve,
    overhead_token_s,
    spans,
    yardstick_of,
)
from nfold.cluster.load import LoadSettings, run_load
from nfold.cluster.load_result import LoadResult
from nfold.cluster.measure import measuring_router, saturating_concurrency
from nfold.cluster.service_view import yardstick_name
from nfold.cluster.workloads import make_workload
from nfold.deployments.addresses import ReplicaAddress, ReplicaIdentity
from nfold.deployments.config import ServedModelConfig
from numpy.typing import NDArray
from stopping import Stops, stopping

MODEL = "sums"
WORKLOAD = "random-32-64"
NUM_SLOTS = 32
# In bfloat16 holds some ten of the workload's requests, of a cache that holds all.
SMALL_KV_BYTES = 2 << 20
# Requests in flight per replica, two such loads in each turn.
SMALL_LOADS = ((4, 8), (1, 16))
LOAD_S, TURN_S, WARM_S = 2.0, 5.0, 1.5
TP_TIMEOUT_S = 60.0

Tell = Callable[[str], None]


HELD_BACK, PAUSED = Stops(0.02, 0.1), Stops(0.5, 2.5)


@dataclass(frozen=True, slots=True)
class NativeRun:
    """What came of all turns with one injection, and of those without it.

    Attributes:
        num_replicas: that were loaded.
        turns: looks at each turn with it.
        window_s: of all of these together.
        lost: tokens that each replica brought less in these than at its rate without it; the first one is hit.
    """

    injections: tuple[str, ...]
    yardstick_name: str
    yardstick: Yardstick
    num_replicas: int
    turns: tuple[tuple[ModelCounters, ...], ...]
    window_s: float
    lost: tuple[float, ...]


def run_native(num_turns: int, tell: Tell) -> Generator[NativeRun]:
    """So many turns with and without each injection; the first is without any. Some eleven minutes for eight."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with (
        _replica(0, cores[:1], None) as (one, pids),
        _replica(1, cores[1:], None) as (other, _),
        _replica(2, cores[:1], SMALL_KV_BYTES) as (small, _),
    ):
        tell("turns without any injection")
        yield _take_turns((), [one, other], [one, other], num_turns)
        tell("one of them held back")
        yield _take_turns(("held_back",), [one, other], [one, other], num_turns, pids[0], HELD_BACK)
        tell("one of them with a small KV cache")
        yield _take_turns(("small_kv",), [one, other], [small, other], num_turns)
    with _replica(3, cores, None) as (wide, pids):
        tell("its second rank paused now and then")
        yield _take_turns(("paused_rank",), [wide], [wide], num_turns, pids[1], PAUSED)


def _take_turns(
    injections: tuple[str, ...],
    clean: Sequence[ReplicaAddress],
    injected: Sequence[ReplicaAddress],
    num_turns: int,
    pid: int = 0,
    stops: Stops | None = None,
) -> NativeRun:
    small: list[LoadResult] = []
    without: list[LoadResult] = []
    turns: list[LoadResult] = []
    _load(clean, None, WARM_S)  # what is computed for the first time takes longer
    for turn in range(num_turns):
        small += [_load(clean, load, LOAD_S) for load in SMALL_LOADS[turn % 2]]
        for is_injected in (False, True) if turn % 2 == 0 else (True, False):
            with stopping(pid, stops) if stops and is_injected else nullcontext():
                result = _load(injected if is_injected else clean, None, TURN_S)
            (turns if is_injected else without).append(result)
    told = [span for result in (*small, *without) for span in spans(result.samples)]
    curve = fit_curve([span.steps for span in told])
    assert curve is not None, "there were steps of all sizes"
    window_s, clean_s = (sum(result.window_s for result in results) for results in (turns, without))
    lost = _tokens(without, clean) * window_s / clean_s - _tokens(turns, injected)
    return NativeRun(
        injections=injections,
        yardstick_name=yardstick_name("CPU", clean[0].tp),
        yardstick=_yardstick(without, curve, overhead_token_s(told), len(clean)),
        num_replicas=len(clean),
        turns=tuple(result.samples for result in turns),
        window_s=window_s,
        lost=tuple(lost.tolist()),
    )


def _tokens(results: Sequence[LoadResult], replicas: Sequence[ReplicaAddress]) -> NDArray[np.int64]:
    """[replicas] that they brought."""
    return np.array(
        [sum(result.output_tokens_by_replica[one.replica_id] for result in results) for one in replicas], np.int64
    )


def _yardstick(
    results: Sequence[LoadResult], curve: StepCurve, overhead_token_s: float, num_replicas: int
) -> Yardstick:
    samples = [sample for result in results for sample in result.samples]
    in_flight = np.mean([sample.num_in_flight - sample.num_queued for sample in samples]) / num_replicas
    told = [span for result in results for span in spans(result.samples)]
    return yardstick_of(told, float(in_flight), curve, overhead_token_s)


def _load(replicas: Sequence[ReplicaAddress], load: int | None, seconds: float) -> LoadResult:
    """So many requests in flight per replica; None saturates."""
    directory = ServedModelConfig(name=MODEL).directory
    workload = make_workload(WORKLOAD, directory, max_model_len=replicas[0].max_model_len)
    concurrency = (load or saturating_concurrency(replicas[0])) * len(replicas)
    with measuring_router(replicas, None, timeout_s=60.0) as router:
        settings = LoadSettings(warmup_s=WARM_S, window_s=seconds)
        return run_load(router, MODEL, workload, ClosedLoop(concurrency), settings)


@contextmanager
def _replica(
    index: int, cores: Sequence[int], kv_cache_bytes: int | None
) -> Generator[tuple[ReplicaAddress, list[int]]]:
    """One replica with a rank on each core, each in a process of its own; its address, and the ranks' pids."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with tempfile.TemporaryDirectory() as directory:
        method = f"file://{directory}/meeting"
        processes = [
            context.Process(
                target=_serve,
                args=(there if rank == 0 else None, index, rank, list(cores), method, kv_cache_bytes),
                daemon=True,
            )
            for rank in range(len(cores))
        ]
        for process in processes:
            process.start()
        there.close()
        try:
            address: ReplicaAddress = here.recv()
            yield address, [process.pid or 0 for process in processes]
        finally:
            here.close()
            for process in processes:
                process.join(20.0)
                if process.is_alive():
                    process.kill()


def _serve(
    parent: Connection | None, index: int, rank: int, cores: list[int], method: str, kv_cache_bytes: int | None
) -> None:
    """In a rank's process, until the parent closes its end."""
    import torch
    from nfold.deployments.engine_service import EngineService
    from nfold.models.engine.native import NativeEngine
    from nfold.models.engine.settings import EngineSettings
    from nfold.models.engine.tp_loop import follow
    from nfold.models.parallel import TpGroup

    os.sched_setaffinity(0, {cores[rank]})
    torch.set_num_threads(1)
    directory: Path = ServedModelConfig(name=MODEL).directory
    settings = EngineSettings(
        model_dir=directory, max_num_seqs=NUM_SLOTS, kv_cache_bytes=kv_cache_bytes, prefix_cache=False
    )
    cpu = torch.device("cpu")
    engine = NativeEngine.load(settings, TpGroup.connect(rank, len(cores), method, cpu, TP_TIMEOUT_S), cpu)
    if parent is None:
        follow(engine)
        return
    identity = ReplicaIdentity(
        replica_id=f"replica-{index}",
        model=MODEL,
        pool="sums",
        accelerator="CPU",
        node_id=f"core-{cores[0]}",
        tp=len(cores),
    )
    service = EngineService(engine, identity, None)
    parent.send(service.address)

    def stop_when_closed() -> None:
        parent.poll(None)
        service.stop()

    threading.Thread(target=stop_when_closed, daemon=True).start()
    service.run()
    engine.close()


def known_losses(run: NativeRun) -> dict[str, float]:
    """Tokens lost for reasons whose size follows from what the engines did."""
    lost = {"recompute": 0.0}
    for samples in run.turns:
        for old, new in zip(samples[0].replicas, samples[-1].replicas, strict=True):
            again = new.steps.num_recomputed_tokens - old.steps.num_recomputed_tokens
            lost["recompute"] += run.yardstick.tokens_per_s * again * run.yardstick.prefill_token_s
    return lost
