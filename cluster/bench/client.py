"""One LoadGen run through a router of this process: connect, warm up, run, drain, count.

LoadGen cannot be stopped before its time, so this runs in a process of its own (`client_process.py`).
"""

import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread, get_native_id

import mlperf_loadgen
import numpy as np
from numpy.typing import NDArray

from ...deployments.addresses import ReplicaAddress, ServiceKeys, this_host
from ...deployments.router import Router, RouterSettings
from ...deployments.speed_prior import SpeedPrior
from ...models.errors import EngineError, StateError, UnavailableError
from ..ledger import ModelCounters
from .observation import Observation
from .progress_line import ProgressLine
from .samples import SampleSet
from .scenarios import Scenario
from .settings import RunSettings
from .sut import Sut
from .warmup import load_little, warm_up

F64 = NDArray[np.float64]
Progress = Callable[[str], None]

READY_TIMEOUT_S = 60.0
TELL_EVERY_S = 2.0
MAX_QUEUED = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ClientJob:
    """What a client is to do.

    Attributes:
        priors: what baselines tell of the replicas' speed.
        nodes: node of each replica, for people.
        log_dir: where LoadGen writes; made by the client.
        warmup_s: seconds of load before LoadGen begins.
        auto_target: the share of the rate seen while warming up that becomes the target; None keeps the settings'.
        loads_little: also before LoadGen begins, look at loads of few requests, for the step times of a baseline.
        stall_s: give up when nothing ends for so long although queries are open.
    """

    model: str
    replicas: tuple[ReplicaAddress, ...]
    keys: ServiceKeys | None = field(default=None, repr=False)
    priors: tuple[SpeedPrior, ...] = ()
    nodes: Mapping[str, str]
    samples: SampleSet
    settings: RunSettings
    log_dir: Path
    warmup_s: float = 0.0
    auto_target: float | None = None
    loads_little: bool = False
    stall_s: float = 180.0


@dataclass(frozen=True, kw_only=True)
class ClientResult:
    """What came of it.

    Attributes:
        settings: as run, the target included.
        busy_share: of the run, what the client did not wait: near 1 it is the limit itself.
        delayed_share: of the run, what the driving thread had work but no core, or none of its quota left.
        cpu_s: of the client's process, all threads.
        num_tokens: of all answers.
        end_s: when the last query ended, after LoadGen issued the first.
        counters: for the ledger.
        counters_of_little: while few requests were open; empty unless that was asked for.
        timeline_s: [K] seconds after the start.
        node_tokens: [K, nodes] output tokens that had come by then, `nodes` being their names.
        node_speeds: see `node_speed.py`.
    """

    settings: RunSettings
    num_queries: int
    num_failed: int
    num_short: int
    first_error: str
    num_tokens: int
    busy_share: float
    delayed_share: float
    cpu_s: float
    end_s: float
    ttft_s: F64
    tpot_s: F64
    e2e_s: F64
    counters: tuple[ModelCounters, ...]
    timeline_s: F64
    node_tokens: F64
    nodes: tuple[str, ...]
    node_speeds: Mapping[str, float]
    counters_of_little: tuple[ModelCounters, ...] = ()


def run_client(job: ClientJob, progress: Progress = lambda line: None) -> ClientResult:
    """
    Raises:
        UnavailableError: a replica is not ready, or nothing came for `stall_s`.
        StateError: the warm-up showed no rate to derive the target from.
        EngineError: LoadGen failed.
    """
    settings = job.settings
    with _open_router(job) as router:
        if job.warmup_s > 0:
            one_by_one = settings.scenario is Scenario.SINGLE_STREAM
            rate = warm_up(router, job.model, job.samples, job.warmup_s, one_by_one=one_by_one, progress=progress)
            if job.auto_target is not None and not one_by_one:
                if rate <= 0:
                    expected = "too short a warm-up to tell what rate to aim at; give --target-qps or more --warmup"
                    raise StateError(expected)
                settings = settings.with_target(rate * job.auto_target)
        little: tuple[ModelCounters, ...] = ()
        if job.loads_little:
            progress("looking at loads of few requests")
            observation = Observation(router, job.model, job.nodes)
            load_little(router, job.model, job.samples, observation.look_if_due)
            little = observation.counters()
        return replace(_run(job, settings, router, progress), counters_of_little=little)


@contextmanager
def _open_router(job: ClientJob) -> Generator[Router]:
    finite = job.settings.scenario is Scenario.OFFLINE
    settings = RouterSettings(max_queued=MAX_QUEUED, finite_batch=finite)
    router = Router(f"bench-{this_host()}-{uuid.uuid4().hex[:8]}", job.keys, settings)
    try:
        router.update_speed_priors(job.priors)
        router.update_replicas(job.replicas)
        give_up_s = time.monotonic() + READY_TIMEOUT_S
        while True:
            replicas = router.snapshot().replicas
            if all(replica.state == "ready" and replica.status is not None for replica in replicas):
                break
            if time.monotonic() > give_up_s:
                states = "; ".join(f"{r.address.replica_id} is {r.state} {r.reason}".rstrip() for r in replicas)
                raise UnavailableError(f"not all replicas are ready after {READY_TIMEOUT_S:g} s: {states}")
            router.poll(0.05)
        yield router
    finally:
        router.close()


def _run(job: ClientJob, settings: RunSettings, router: Router, progress: Progress) -> ClientResult:
    job.log_dir.mkdir(parents=True, exist_ok=True)
    sut = Sut(router, job.model, job.samples, keep_tokens=settings.accuracy, tell_first=settings.counts_tokens)
    failure: list[BaseException] = []
    thread = Thread(target=_start_test, args=(sut, job, settings, failure), name="loadgen", daemon=True)
    observation = Observation(router, job.model, job.nodes)
    line = ProgressLine(settings, job.samples)
    cpu_s, began_s, told_s = time.process_time(), time.monotonic(), time.monotonic()
    last_ended, last_news_s = 0, began_s
    delay_s = _delay_s()
    observation.look(0.0)
    thread.start()
    while thread.is_alive() or sut.num_open:
        sut.turn()
        now_s = time.monotonic()
        observation.look_if_due(now_s - began_s)
        if sut.queries.num_ended != last_ended or not sut.num_open:
            last_ended, last_news_s = sut.queries.num_ended, now_s
        if now_s - last_news_s > job.stall_s:
            raise UnavailableError(f"no query has ended for {job.stall_s:g} s; {sut.num_open} are open")
        if now_s - told_s >= TELL_EVERY_S:
            told_s = now_s
            progress(line.of(sut.queries, now_s - began_s))
    wall_s = time.monotonic() - began_s
    delay_s = _delay_s() - delay_s
    thread.join()
    observation.look(wall_s)
    sut.close()
    if failure:
        raise EngineError(f"LoadGen failed: {failure[0]}")
    return _result(job, settings, sut, observation, wall_s, delay_s, time.process_time() - cpu_s)


def _delay_s() -> float:
    """How long this thread has waited for a core so far, throttling included; 0 where the kernel does not tell."""
    try:
        return int(Path(f"/proc/self/task/{get_native_id()}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _start_test(sut: Sut, job: ClientJob, settings: RunSettings, failure: list[BaseException]) -> None:
    """In a thread of its own: LoadGen blocks until its test is over."""
    try:
        count = len(job.samples)
        performance_count = min(int(settings.values["performance_sample_count_override"]) or count, count)
        lg_sut = mlperf_loadgen.ConstructFastSUT(sut.issue, sut.flush_queries)
        lg_qsl = mlperf_loadgen.ConstructQSL(count, performance_count, lambda rows: None, lambda rows: None)
        log = mlperf_loadgen.LogSettings()
        log.enable_trace = False
        log.log_output.outdir = str(job.log_dir)
        log.log_output.copy_summary_to_stdout = False
        mlperf_loadgen.StartTestWithLogSettings(lg_sut, lg_qsl, settings.test_settings(), log)
        mlperf_loadgen.DestroyQSL(lg_qsl)
        mlperf_loadgen.DestroyFastSUT(lg_sut)
    except BaseException as error:  # whoever drives must hear of it, whatever it is
        failure.append(error)


def _result(
    job: ClientJob,
    settings: RunSettings,
    sut: Sut,
    observation: Observation,
    wall_s: float,
    delay_s: float,
    cpu_s: float,
) -> ClientResult:
    queries = sut.queries
    count = len(queries)
    timeline_s, node_tokens = observation.timeline()
    ends = queries.end_s[:count]
    return ClientResult(
        settings=settings,
        num_queries=count,
        num_failed=queries.num_failed,
        num_short=queries.num_short(job.samples.answer_lens),
        first_error=queries.first_error,
        num_tokens=queries.num_ended_tokens,
        busy_share=max(0.0, 1.0 - sut.waited_s / wall_s),
        delayed_share=delay_s / wall_s,
        cpu_s=cpu_s,
        end_s=float(np.nanmax(ends) - queries.issued_s[0]) if count else 0.0,
        ttft_s=queries.ttft_s(),
        tpot_s=queries.tpot_s(),
        e2e_s=queries.e2e_s(),
        counters=observation.counters(),
        timeline_s=timeline_s,
        node_tokens=node_tokens,
        nodes=observation.nodes,
        node_speeds=observation.node_speeds(),
    )
