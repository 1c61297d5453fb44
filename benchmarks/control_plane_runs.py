"""The measurements that `control_plane.py` puts together: one load on one set of replicas, to figures."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from control_plane_drive import Drive, Window, run_to_end, run_windows, saturated_tokens_per_s
from control_plane_fleet import MODEL, Fleet, num_cores, open_router, profile_of
from control_plane_ideal import ideal_ttft_s, steady_tpot_s
from control_plane_report import added_figures, cpu_figures, latency_figures
from control_plane_requests import Prompts, Requests, backlog, poisson
from nfold.cluster.service import Progress
from nfold.deployments.addresses import ReplicaAddress
from nfold.models.errors import EngineError

# Of an engine's slots: what is open at any time in an Offline run, so that none is ever free.
OPEN_SHARE = 1.25
# What would be in flight comes in this time at least: its prompts are more than engines compute at once.
RAMP_S = 30.0

Figures = dict[str, float | int | None]


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds before the window, and of it."""

    warmup_s: float
    window_s: float


def saturate(
    fleet: Fleet, groups: Sequence[Sequence[ReplicaAddress]], times: Times, progress: Progress, *, seed: int
) -> list[Window]:
    """Offline without an end on each group of equal replicas, side by side, each with a router of its own."""
    with ExitStack() as stack:
        drives = [
            _drive(fleet, stack, group, _endless(group, times, seed + number), max_open=_max_open(group))
            for number, group in enumerate(groups)
        ]
        for drive in drives:
            drive.queue_backlog()
        windows = run_windows(drives, fleet.meter, times.warmup_s, times.window_s, progress, settle_s=0.0)
        _check(drives)
    return windows


def answer_all(
    fleet: Fleet, groups: Sequence[Sequence[ReplicaAddress]], seconds: float, progress: Progress, *, seed: int
) -> list[Figures]:
    """Offline with an end on each group, side by side: queries for so many seconds by the published rates, all of
    them asked at once, as LoadGen does.

    Returns:
        Of each: `finite_tokens_per_s` to the last answer, `saturated_tokens_per_s` without ramp and tail, `tail_s`
        from the moment when 99 % have ended.
    """
    with ExitStack() as stack:
        drives: list[Drive] = []
        for number, group in enumerate(groups):
            profile, _ = profile_of(group[0])
            count = round(sum(queries_per_s(replica) for replica in group) * seconds)
            requests = backlog(profile, count, seed=seed + number)
            drives.append(_drive(fleet, stack, group, requests, max_open=None, finite_batch=True))
        samples = run_to_end(drives, progress, timeout_s=10 * seconds + 600)
        _check(drives)
    found: list[Figures] = []
    for drive, sample in zip(drives, samples, strict=True):
        ends_s = np.sort(drive.end_s)
        found.append(
            {
                "num_queries": len(drive.requests),
                "seconds": float(ends_s[-1]),
                "finite_tokens_per_s": drive.finite_tokens_per_s(),
                "saturated_tokens_per_s": saturated_tokens_per_s(sample),
                "tail_s": float(ends_s[-1] - ends_s[int(0.99 * len(ends_s))]),
            }
        )
    return found


def arrive(
    fleet: Fleet,
    replicas: Sequence[ReplicaAddress],
    rate: float,
    times: Times,
    progress: Progress,
    *,
    seed: int,
    prompt_tokens: int | None = None,
    answer_tokens: int | None = None,
    warm: bool = True,
    replay: bool = True,
) -> Figures:
    """Poisson arrivals of `rate` queries/s on all replicas.

    Args:
        prompt_tokens, answer_tokens: every prompt and answer has so many; None takes the data set's.
        warm: begin as if arrivals had come for ever, if the time before the window is enough for that.
        replay: also what the control plane added to TTFT, see `control_plane_ideal`.
    """
    requests = _arrivals(
        replicas, rate, times, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens, warm=warm, seed=seed
    )
    with ExitStack() as stack:
        drive = _drive(fleet, stack, replicas, requests, max_open=None)
        [window] = run_windows([drive], fleet.meter, times.warmup_s, times.window_s, progress)
    figures = _offered_figures(drive, window, times)
    if not replay:
        return figures
    progress("replaying the same requests in virtual time")
    engines = [profile_of(replica) for replica in replicas]
    begin_s, end_s = times.warmup_s, times.warmup_s + times.window_s
    return figures | added_figures(drive.ttft_s(begin_s, end_s), ideal_ttft_s(engines, requests, begin_s, end_s))


def arrive_each(
    fleet: Fleet, groups: Sequence[Sequence[ReplicaAddress]], times: Times, progress: Progress, *, seed: int
) -> list[Figures]:
    """Poisson arrivals on each group of equal replicas at its published rate, side by side. CPU seconds are
    those of all together."""
    with ExitStack() as stack:
        drives: list[Drive] = []
        for number, group in enumerate(groups):
            requests = _arrivals(group, sum(map(queries_per_s, group)), times, seed=seed + number)
            drives.append(_drive(fleet, stack, group, requests, max_open=None))
        windows = run_windows(drives, fleet.meter, times.warmup_s, times.window_s, progress)
    return [_offered_figures(drive, window, times) for drive, window in zip(drives, windows, strict=True)]


def _arrivals(
    replicas: Sequence[ReplicaAddress],
    rate: float,
    times: Times,
    *,
    seed: int,
    prompt_tokens: int | None = None,
    answer_tokens: int | None = None,
    warm: bool = True,
) -> Requests:
    """See `arrive`."""
    profile, _ = profile_of(replicas[0])
    return poisson(
        profile,
        rate,
        times.warmup_s + times.window_s,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        warm_tpot_s=_typical_tpot_s(replicas, rate) if warm and times.warmup_s > RAMP_S else None,
        ramp_s=max(RAMP_S, times.warmup_s / 2),
        seed=seed,
    )


def _offered_figures(drive: Drive, window: Window, times: Times) -> Figures:
    """What came of the requests that were offered in a window."""
    begin_s, end_s = times.warmup_s, times.warmup_s + times.window_s
    ttft_s = drive.ttft_s(begin_s, end_s)
    offered = drive.requests.offered_tokens_per_s(begin_s, end_s)
    figures: Figures = window_figures(window) | {
        "offered_queries_per_s": len(ttft_s) / (end_s - begin_s),
        "offered_tokens_per_s": offered,
        "share_of_offered": window.tokens_per_s / offered,
        "num_failed": drive.num_failed,
    }
    return figures | latency_figures("tpot", drive.tpot_s(begin_s, end_s)) | latency_figures("ttft", ttft_s)


def window_figures(window: Window) -> Figures:
    """The figures that every window has."""
    return {
        "tokens_per_s": window.tokens_per_s,
        "queries_per_s": window.queries_per_s,
        "steps_per_s": window.steps_per_s,
        **cpu_figures(window.cpu, window.num_tokens, num_cores()),
    }


def queries_per_s(replica: ReplicaAddress) -> float:
    """What one accelerator answers by its published rate."""
    profile, scenario = profile_of(replica)
    known = profile.scenario(scenario)
    return (known.figures["tokens_per_s"].value or 0.0) / known.run.tokens_per_sample


def _max_open(group: Sequence[ReplicaAddress]) -> int:
    return math.ceil(OPEN_SHARE * sum(replica.max_num_seqs for replica in group))


def _endless(group: Sequence[ReplicaAddress], times: Times, seed: int) -> Requests:
    """More than can be answered in the time, the first of them as an engine at work has them."""
    profile, _ = profile_of(group[0])
    rate = sum(queries_per_s(replica) for replica in group)
    num_slots = sum(replica.max_num_seqs for replica in group)
    count = _max_open(group) + round(2 * num_slots + 1.2 * rate * (times.warmup_s + times.window_s))
    return backlog(profile, count, num_warm=num_slots, seed=seed)


def _typical_tpot_s(replicas: Sequence[ReplicaAddress], rate: float) -> float:
    """Mean over the kinds of replicas, each at its share of the rate."""
    total = sum(queries_per_s(replica) for replica in replicas)
    kinds = {replica.accelerator: replica for replica in replicas}
    found = {
        kind: steady_tpot_s(*profile_of(replica), rate * queries_per_s(replica) / total)
        for kind, replica in kinds.items()
    }
    shares = [queries_per_s(replica) / total for replica in replicas]
    return sum(share * found[replica.accelerator] for share, replica in zip(shares, replicas, strict=True))


def _drive(
    fleet: Fleet,
    stack: ExitStack,
    replicas: Sequence[ReplicaAddress],
    requests: Requests,
    max_open: int | None,
    finite_batch: bool = False,
) -> Drive:
    profile, _ = profile_of(replicas[0])
    router = stack.enter_context(open_router(fleet, replicas, finite_batch=finite_batch))
    return Drive(router, MODEL, requests, Prompts(profile.vocab_size), max_open=max_open)


def _check(drives: Sequence[Drive]) -> None:
    failed = sum(drive.num_failed for drive in drives)
    if failed:
        raise EngineError(f"{failed} requests failed; an Offline run must answer all")
