"""What a router knows, as frozen values that travel (msgspec), and the histograms behind it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .addresses import ReplicaAddress
from .wire import ReplicaStatus

# Seconds. One set for all three, fine at the low end for TPOT and long enough for end-to-end times.
BUCKET_BOUNDS_S = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0),
)
_BOUNDS_S = np.array(BUCKET_BOUNDS_S)
# Arrays of observations that wait to be counted together, as most are short.
MAX_UNCOUNTED = 64


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """Totals since the router started.

    Attributes:
        bounds_s: upper bounds of the buckets, seconds.
        counts: one per bound (not cumulative) and a last one for what is above all of them.
        total_s: sum of the observations.
    """

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    total_s: float


class Histogram:
    """Counts observations in fixed buckets, many at a time."""

    def __init__(self) -> None:
        self._counts = np.zeros(len(BUCKET_BOUNDS_S) + 1, np.int64)
        self._total_s = 0.0
        self._uncounted: list[NDArray[np.float64]] = []

    def observe(self, values_s: NDArray[np.float64]) -> None:
        self._uncounted.append(values_s)
        if len(self._uncounted) >= MAX_UNCOUNTED:
            self._count()

    def snapshot(self) -> HistogramSnapshot:
        self._count()
        return HistogramSnapshot(BUCKET_BOUNDS_S, tuple(self._counts.tolist()), self._total_s)

    def _count(self) -> None:
        if self._uncounted:
            values_s = np.concatenate(self._uncounted)
            self._uncounted.clear()
            buckets = np.searchsorted(_BOUNDS_S, values_s, side="left")
            self._counts += np.bincount(buckets, minlength=len(self._counts))
            self._total_s += float(values_s.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSnapshot:
    """One replica as this router sees it.

    Attributes:
        state: `connecting`, `ready`, `draining`, `lost` or `refused`.
        alive: it answers: `ready` or `draining`.
        reason: why it is lost or refused, else empty.
        num_in_flight: requests of this router that it holds.
        num_in_flight_others: requests of other routers that it holds, as last told.
        outstanding_tokens: prompt and expected output tokens not yet seen computed, this router's.
        tokens_per_s: estimated speed at a full batch; None before its pool was measured.
        delay_s: one way to it; 0 before it was measured.
        in_flight_s: request-seconds that this router had bound to it, when the status came: what the replica's own
            `held_s` lacks of it, all routers together, was on its way there or back.
        status: the latest that it sent, None before the first.
        status_age_s: seconds since then.
        num_output_tokens, num_prompt_tokens: totals that came through this router.
    """

    address: ReplicaAddress
    state: str
    alive: bool
    reason: str
    num_in_flight: int
    num_in_flight_others: int
    outstanding_tokens: float
    tokens_per_s: float | None
    status: ReplicaStatus | None
    status_age_s: float
    num_output_tokens: int
    num_prompt_tokens: int
    delay_s: float = 0.0
    in_flight_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSnapshot:
    """Totals of one model in this router. `num_queued` and `num_in_flight` are of now.

    Attributes:
        num_refused: by a full queue (OverloadedError) or for want of a replica (UnavailableError).
        num_continued: moved to another replica because theirs died.
        num_continued_tokens: prompt and answer of these so far, which are computed again there.
        num_continued_left: output tokens that were still expected of them.
        num_prompt_tokens: of requests that brought their first token.
        expected_output_tokens: what the router expects of an answer.
    """

    model: str
    num_queued: int
    num_in_flight: int
    num_submitted: int
    num_refused: int
    num_finished: int
    num_failed: int
    num_aborted: int
    num_continued: int
    num_prompt_tokens: int
    num_output_tokens: int
    expected_output_tokens: float
    num_continued_tokens: int = 0
    num_continued_left: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSnapshot:
    """Latencies of one pool, measured at this router: `ttft` and `e2e` from submission (queue included), `tpot`
    per output token after the first."""

    model: str
    pool: str
    ttft: HistogramSnapshot
    tpot: HistogramSnapshot
    e2e: HistogramSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSnapshot:
    """All that one router knows.

    Attributes:
        taken_at: seconds since the epoch.
    """

    router_id: str
    taken_at: float
    replicas: tuple[ReplicaSnapshot, ...]
    models: tuple[ModelSnapshot, ...]
    pools: tuple[PoolSnapshot, ...]
