"""The share of requests within a limit, out of histograms that only grow. Pure."""

from collections import deque
from collections.abc import Mapping

from ...deployments.router_stats import HistogramSnapshot

# Of (`ttft`, `tpot` or `e2e`; model; pool).
Histograms = Mapping[tuple[str, str, str], HistogramSnapshot]


class Attainment:
    """Keeps the histograms of the latest window. One thread.

    Args:
        window_s: of which requests the share is taken.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._kept: deque[tuple[float, Histograms]] = deque()

    def look(self, time_s: float, histograms: Histograms) -> None:
        self._kept.append((time_s, histograms))
        while len(self._kept) > 2 and time_s - self._kept[1][0] >= self._window_s:
            self._kept.popleft()

    def share(self, what: str, model: str, limit_s: float | None) -> float | None:
        """Of a model's requests in the window; None when none ended, or nothing is promised."""
        if limit_s is None or len(self._kept) < 2:
            return None
        (_, before), (_, now) = self._kept[0], self._kept[-1]
        total = within = 0.0
        for key, new in now.items():
            if key[:2] != (what, model):
                continue
            old = before.get(key)
            counts = [after - (old.counts[i] if old else 0) for i, after in enumerate(new.counts)]
            total += sum(counts)
            within += _below(new.bounds_s, counts, limit_s)
        return within / total if total else None


def _below(bounds_s: tuple[float, ...], counts: list[int], limit_s: float) -> float:
    """Observations at or below the limit; those of the bucket that it cuts are taken to be spread evenly."""
    below, lower_s = 0.0, 0.0
    for upper_s, count in zip(bounds_s, counts, strict=False):
        if upper_s > limit_s:
            return below + count * (limit_s - lower_s) / (upper_s - lower_s)
        below, lower_s = below + count, upper_s
    return below
