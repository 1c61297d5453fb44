"""Totals that never go back, although the processes that count them come and go."""

from collections.abc import Hashable, Iterator, Mapping
from typing import Generic, TypeVar

from ..deployments.router_stats import HistogramSnapshot, RouterSnapshot

Key = TypeVar("Key", bound=Hashable)


class Totals(Generic[Key]):
    """Sums per key over all lives of all sources.

        source a, life 1   0 ── 40 ── 70 ╳
        source a, life 2               0 ── 5 ── 30
        total              0 ── 40 ── 70 ── 75 ── 100

    A source that is not heard of any more keeps what it had counted.
    """

    def __init__(self) -> None:
        self._past: dict[Key, float] = {}
        self._lives: dict[str, tuple[float, Mapping[Key, float]]] = {}

    def update(self, source: str, started_at: float, counts: Mapping[Key, float]) -> None:
        """What `source`, whose life began at `started_at`, has counted since then. News of an earlier life than the
        one known, or older than what is known of it, is ignored."""
        life, known = self._lives.get(source, (started_at, {}))
        if started_at < life:
            return
        if started_at > life:
            for key, count in known.items():
                self._past[key] = self._past.get(key, 0.0) + count
            known = {}
        fresh = {key: max(count, known.get(key, 0.0)) for key, count in counts.items()}
        self._lives[source] = (started_at, {**known, **fresh})

    def items(self) -> Iterator[tuple[Key, float]]:
        """Each key with its sum."""
        sums = dict(self._past)
        for _, counts in self._lives.values():
            for key, count in counts.items():
                sums[key] = sums.get(key, 0.0) + count
        yield from sums.items()


class LatencyTotals:
    """The histograms of all routers, summed per (`ttft`, `tpot` or `e2e`; model; pool)."""

    def __init__(self) -> None:
        self._bounds_s: tuple[float, ...] = ()
        self._buckets = Totals[tuple[str, str, str, int]]()

    def update(self, snapshot: RouterSnapshot) -> None:
        """A router's latest snapshot. All routers of a service have the same buckets."""
        counts: dict[tuple[str, str, str, int], float] = {}
        for pool in snapshot.pools:
            for name, histogram in (("ttft", pool.ttft), ("tpot", pool.tpot), ("e2e", pool.e2e)):
                self._bounds_s = histogram.bounds_s
                for index, count in enumerate((*histogram.counts, histogram.total_s)):
                    counts[name, pool.model, pool.pool, index] = count
        self._buckets.update(snapshot.router_id, 0.0, counts)

    def histograms(self) -> dict[tuple[str, str, str], HistogramSnapshot]:
        sums = dict(self._buckets.items())
        num = len(self._bounds_s) + 1
        return {
            (name, model, pool): HistogramSnapshot(
                self._bounds_s,
                tuple(int(sums[name, model, pool, index]) for index in range(num)),
                sums[name, model, pool, num],
            )
            for name, model, pool in sorted({key[:3] for key in sums})
        }
