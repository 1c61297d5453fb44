"""Percentiles of latencies."""

from collections.abc import Sequence

import numpy as np

from .record import Record


class Percentiles(Record):
    """Of a latency, seconds."""

    p50: float
    p90: float
    p99: float


def percentiles(values_s: Sequence[float]) -> Percentiles | None:
    """None when there are no values."""
    if not values_s:
        return None
    p50, p90, p99 = np.percentile(values_s, (50, 90, 99))
    return Percentiles(p50=float(p50), p90=float(p90), p99=float(p99))
