"""Measurements on replicas that are there: the baseline of one node, and all nodes under equal load per replica."""

import math
import statistics
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ..deployments.addresses import ReplicaAddress, ServiceKeys, this_host
from ..deployments.router import Router, RouterSettings
from ..deployments.speed_prior import SpeedPrior
from ..models.errors import StateError, UnavailableError
from .arrivals import ClosedLoop
from .baseline import Baseline, BaselineKey
from .ledger import fit_saturation, spans
from .load import POLL_S, LoadSettings, run_load
from .load_result import LoadResult, StepTimePoint
from .provenance import provenance
from .roofline import ReplicaSize, empty_replicas
from .workloads import Workload

# Of a replica's slots: with some requests beyond them, a slot that frees is taken at once.
SATURATING_SHARE = 1.25
CURVE_FACTOR = 4
CURVE_WINDOW_S = 3.0
# Of what the load generator reaches alone.
MAX_ROOFLINE_SHARE = 0.7
MAX_CLIENT_CPU_SHARE = 0.9
ROOFLINE_LOAD = LoadSettings(warmup_s=0.5, window_s=2.0)

Progress = Callable[[str], None]


@contextmanager
def measuring_router(
    addresses: Sequence[ReplicaAddress],
    keys: ServiceKeys | None,
    *,
    timeout_s: float = 30.0,
    finite_batch: bool = False,
    priors: Sequence[SpeedPrior] = (),
) -> Generator[Router]:
    """A router of this process, connected to all of `addresses`; closed at the end.

    Args:
        finite_batch: see `RouterSettings`.
        priors: what baselines tell of the replicas' speed.

    Raises:
        UnavailableError: a replica is not ready within `timeout_s`; says which and why.
    """
    settings = RouterSettings(max_queued=1_000_000, finite_batch=finite_batch)
    router = Router(f"load-{this_host()}-{uuid.uuid4().hex[:8]}", keys, settings)
    try:
        router.update_speed_priors(priors)
        router.update_replicas(addresses)
        _wait_until_ready(router, len(addresses), timeout_s)
        yield router
    finally:
        router.close()


def _wait_until_ready(router: Router, num: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        replicas = router.snapshot().replicas
        if sum(replica.state == "ready" and replica.status is not None for replica in replicas) == num:
            return
        if time.monotonic() > deadline:
            states = "; ".join(f"{r.address.replica_id} is {r.state} {r.reason}".rstrip() for r in replicas)
            raise UnavailableError(f"not all replicas are ready after {timeout_s:g} s: {states}")
        router.poll(POLL_S)


def saturating_concurrency(address: ReplicaAddress) -> int:
    """Requests in flight that keep all slots of one replica taken."""
    return math.ceil(SATURATING_SHARE * address.max_num_seqs)


def replicas_of_one_node(addresses: Sequence[ReplicaAddress], node_id: str | None = None) -> list[ReplicaAddress]:
    """Those on `node_id`, or on the node with the most of them.

    Raises:
        StateError: there are none, or they differ in accelerator or tp, so that they have no one baseline.
    """
    by_node: dict[str, list[ReplicaAddress]] = {}
    for address in addresses:
        by_node.setdefault(address.node_id, []).append(address)
    if not by_node or (node_id is not None and node_id not in by_node):
        raise StateError(f"no replica is ready on {'any node' if node_id is None else f'node {node_id}'}")
    chosen = by_node[node_id or max(sorted(by_node), key=lambda node: len(by_node[node]))]
    kinds = sorted({f"{address.accelerator} with tp {address.tp}" for address in chosen})
    if len(kinds) > 1:
        raise StateError(f"a baseline is of one kind of replica; this node has {' and '.join(kinds)}")
    return chosen


def measure_load(
    addresses: Sequence[ReplicaAddress],
    keys: ServiceKeys | None,
    workload: Workload,
    *,
    concurrency: int,
    settings: LoadSettings = LoadSettings(),  # noqa: B008
    first: int = 0,
    node_names: Mapping[str, str] | None = None,
    progress: Progress = lambda line: None,
) -> LoadResult:
    """All of `addresses`, replicas of one model, under a closed loop of `concurrency` requests per replica.

    The other arguments are those of `run_load`.

    Raises: as `run_load` and `measuring_router`.
    """
    arrivals = ClosedLoop(concurrency * len(addresses))
    with measuring_router(addresses, keys) as router:
        return run_load(
            router,
            addresses[0].model,
            workload,
            arrivals,
            settings,
            first=first,
            node_names=node_names,
            progress=progress,
        )


def measure_baseline(
    addresses: Sequence[ReplicaAddress],
    keys: ServiceKeys | None,
    workload: Workload,
    *,
    weights: str,
    weights_name: str = "",
    node_id: str | None = None,
    concurrency: int | None = None,
    repeats: int = 3,
    settings: LoadSettings = LoadSettings(),  # noqa: B008
    curve: bool = False,
    max_spread: float | None = None,
    roofline: bool = False,
    node_names: Mapping[str, str] | None = None,
    progress: Progress = lambda line: None,
) -> Baseline:
    """The profile at saturation of the replicas on one node; the rest of the cluster may serve meanwhile.

    Args:
        addresses: replicas of one model, on any nodes.
        weights, weights_name: see `Baseline`.
        node_id: the node to measure; None takes the one with the most replicas.
        concurrency: requests in flight per replica; None takes `saturating_concurrency`.
        curve: also measure step times under 1, 4, 16, ... requests per replica, a few seconds each.
        max_spread: of the repeats, at most; None takes any.
        roofline: first measure what this load generator reaches against replicas that compute nothing.

    Raises:
        StateError: see `replicas_of_one_node`, `build_baseline` and `check_baseline`.
        And as `run_load` and `measuring_router`.
    """
    chosen = replicas_of_one_node(addresses, node_id)
    names = node_names or {}
    per_replica = concurrency or saturating_concurrency(chosen[0])
    num_asked = 0

    def run(in_flight: int, settings: LoadSettings, what: str) -> LoadResult:
        nonlocal num_asked

        def told(line: str) -> None:
            progress(f"{what}: {line}")

        loop, model = ClosedLoop(in_flight * len(chosen)), chosen[0].model
        result = run_load(router, model, workload, loop, settings, first=num_asked, node_names=names, progress=told)
        num_asked += result.num_submitted
        return result

    reached = measure_roofline(chosen, workload, per_replica, progress) if roofline else None
    with measuring_router(chosen, keys) as router:
        results = [run(per_replica, settings, f"repeat {i + 1} of {repeats}") for i in range(repeats)]
        short = replace(settings, window_s=min(CURVE_WINDOW_S, settings.window_s))
        points = (
            [run(num, short, f"step time at {num}") for num in curve_loads(chosen[0].max_num_seqs)] if curve else []
        )
    node = names.get(chosen[0].node_id, chosen[0].node_id)
    baseline = build_baseline(chosen, workload.name, weights, per_replica, results, points, node, weights_name)
    baseline = baseline.model_copy(update={"roofline_tokens_per_s": reached})
    check_baseline(baseline, max_spread, max(result.client_cpu_share for result in results))
    return baseline


def measure_roofline(
    replicas: Sequence[ReplicaAddress], workload: Workload, concurrency: int, progress: Progress
) -> float:
    """Output tokens/s that this load generator would reach on so many replicas that compute nothing, with a whole
    core. With few requests in flight it mostly waits even for these, and that is not its limit.

    Args:
        concurrency: requests in flight per replica.

    Raises: as `run_load`, and StateError when they do not start.
    """
    progress("what the load generator reaches alone")
    with empty_replicas([ReplicaSize.of(replica) for replica in replicas]) as addresses:
        result = measure_load(addresses, None, workload, concurrency=concurrency, settings=ROOFLINE_LOAD)
    return result.output_tokens_per_s / min(1.0, max(0.01, result.client_cpu_share))


def check_baseline(baseline: Baseline, max_spread: float | None, client_cpu_share: float) -> None:
    """Whether it is one of the replicas, and certain enough.

    Raises:
        StateError: the load generator was the limit, or the repeats differ too much; with the measured figures.
    """
    rate, roofline = baseline.tokens_per_s, baseline.roofline_tokens_per_s
    if roofline is not None and rate > MAX_ROOFLINE_SHARE * roofline:
        raise StateError(
            f"no baseline: {rate:,.0f} tokens/s were measured, and this load generator reaches no more than "
            f"{roofline:,.0f} against replicas that compute nothing; it must be the limit of neither "
            f"(at most {MAX_ROOFLINE_SHARE:.0%} of that). Measure fewer replicas, or from a faster machine"
        )
    if roofline is not None and client_cpu_share > MAX_CLIENT_CPU_SHARE:
        raise StateError(
            f"no baseline: the load generator took {client_cpu_share:.0%} of a core, more than "
            f"{MAX_CLIENT_CPU_SHARE:.0%}: it was the limit. Measure fewer replicas, or from a faster machine"
        )
    if max_spread is not None and baseline.spread > max_spread:
        rates = ", ".join(f"{each:,.0f}" for each in baseline.repeats)
        raise StateError(
            f"no baseline: the repeats gave {rates} tokens/s, which differ by {baseline.spread:.1%}, more than "
            f"{max_spread:.1%}. Keep the machine free of other work, or measure longer with --window"
        )


def build_baseline(
    replicas: Sequence[ReplicaAddress],
    workload: str,
    weights: str,
    concurrency: int,
    results: Sequence[LoadResult],
    curve: Sequence[LoadResult],
    node: str,
    weights_name: str = "",
) -> Baseline:
    """Out of the repeats at saturation and, for the step-time curve, runs under less: without these there is none
    (see `fit_curve`). Latencies are those of the repeat with the median rate.

    Raises:
        StateError: requests failed, so that the rate is not one of a healthy node.
    """
    failed = sum(result.num_failed for result in results)
    if failed:
        error = next(result.first_error for result in results if result.num_failed)
        raise StateError(f"no baseline: {failed} requests failed while it was measured; the first said: {error}")
    address, rates = replicas[0], [result.output_tokens_per_s for result in results]
    median = statistics.median_low(rates)
    typical = results[rates.index(median)]
    told = [span for result in (*curve, *results) for span in spans(result.samples)]
    saturation, fitted = fit_saturation(told, spans(typical.samples))
    return Baseline(
        key=BaselineKey(model=address.model, accelerator=address.accelerator, tp=address.tp, workload=workload),
        weights=weights,
        weights_name=weights_name,
        engine=address.engine,
        settings=address.settings,
        node=node,
        num_replicas=len(replicas),
        concurrency=concurrency,
        num_in_flight=statistics.fmean(_in_flight(result) for result in results) / len(replicas),
        tokens_per_s=median,
        repeats=rates,
        window_s=typical.window_s,
        ttft_s=typical.ttft_s,
        tpot_s=typical.tpot_s,
        e2e_s=typical.e2e_s,
        step_times=_curve([*curve, *results]),
        curve=fitted,
        saturation=saturation,
        provenance=provenance(),
    )


def _in_flight(result: LoadResult) -> float:
    """Requests in the engines, mean over the window."""
    return statistics.fmean(sample.num_in_flight - sample.num_queued for sample in result.samples)


def curve_loads(num_slots: int) -> list[int]:
    """Requests in flight per replica at which step times are measured, below saturation."""
    loads = [1]
    while loads[-1] * CURVE_FACTOR < num_slots:
        loads.append(loads[-1] * CURVE_FACTOR)
    return loads


def _curve(results: Sequence[LoadResult]) -> list[StepTimePoint]:
    """One point per load, over all replicas of it, by growing batch; runs under an equal load are one point."""
    by_load: dict[str, list[StepTimePoint]] = {}
    for result in results:
        by_load.setdefault(result.arrivals, []).extend(result.step_times.values())
    return sorted((_mean(points) for points in by_load.values() if points), key=lambda point: point.num_tokens)


def _mean(points: Sequence[StepTimePoint]) -> StepTimePoint:
    steps = [point.num_steps for point in points]
    return StepTimePoint(
        num_tokens=statistics.fmean((point.num_tokens for point in points), steps),
        step_s=statistics.fmean((point.step_s for point in points), steps),
        num_steps=sum(steps),
    )
