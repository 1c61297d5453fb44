"""Watches a service: merges what its routers know, keeps totals that never go back, and accounts for efficiency.

No Ray and no HTTP here: `observe` is called about once a second with what was read elsewhere.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..deployments.router_stats import HistogramSnapshot, RouterSnapshot
from ..deployments.wire import ReplicaStatus
from .baseline import Baseline
from .controller.costs import Costs
from .ledger import Books, Ledger, ModelCounters, Place, Presence, tokens_per_s, total
from .provisioned import PoolTarget, Roster
from .service_view import ModelView, ReplicaView, ServiceView, merge, model_counters, yardstick_name
from .totals import LatencyTotals, Totals

# Which total: name and label values, as in the collector's tables of metrics.
CounterKey = tuple[str, tuple[str, ...]]
HistogramKey = tuple[str, str, str]


@dataclass(frozen=True)
class Reading:
    """What one look at the service brought.

    Attributes:
        snapshots: the latest of each router that is known, stale ones included.
        node_names: by Ray's node id.
        baselines: published for this service.
        targets: what is wanted of each pool, by its name.
        quarantined: replicas that are kept out of routing.
        costs: as the controller told them last.
    """

    snapshots: Sequence[RouterSnapshot]
    node_names: Mapping[str, str] = field(default_factory=dict[str, str])
    baselines: Sequence[Baseline] = ()
    targets: Mapping[str, PoolTarget] = field(default_factory=dict[str, PoolTarget])
    quarantined: frozenset[str] = frozenset()
    costs: Costs | None = None


@dataclass(frozen=True)
class ModelReport:
    """One model over the latest window.

    Attributes:
        replica_tokens_per_s: output tokens/s by replica id.
        baselines: what its replicas are measured by, by yardstick name.
        ledgers: by length of the window in seconds, as asked for, and by replica; without those that have no
            baseline, and empty before the second look.
    """

    view: ModelView
    replica_tokens_per_s: Mapping[str, float]
    baselines: Mapping[str, Baseline]
    ledgers: Mapping[float, Mapping[Place, Ledger]] = field(default_factory=dict[float, Mapping[Place, Ledger]])

    @property
    def ledger(self) -> Ledger | None:
        """Of the whole model over the shortest window."""
        return total(self.ledgers[min(self.ledgers)].values()) if self.ledgers else None


@dataclass(frozen=True)
class ServiceReport:
    """The service as last looked at; the next look makes a new one, so any thread may read it.

    Attributes:
        counters: totals since the service started, or this observer if that was later.
        histograms: of (`ttft`, `tpot` or `e2e`; model; pool).
        num_routers: those that count: not stale.
        costs: of tokens; None without prices, and when the controller has not told any for a while.
    """

    view: ServiceView
    models: Mapping[str, ModelReport]
    counters: Mapping[CounterKey, float]
    histograms: Mapping[HistogramKey, HistogramSnapshot]
    num_routers: int
    costs: Costs | None = None


# Seconds over which the ledger is kept.
WINDOWS_S = (10.0, 60.0, 600.0)
# The controller tells costs with each of its ticks.
COSTS_STALE_S = 60.0
# Looks further apart than this leave a hole in the books.
HOLE_AFTER_S = 5.0

EMPTY_REPORT = ServiceReport(ServiceView({}, {}), {}, {}, {}, 0)


class Observer:
    """Keeps the history that reports need. One thread.

    Args:
        clock: seconds, only forward.
        window_s: what rates are taken over.
        stale_after_s: a router whose snapshot has not changed for so long says nothing of now; its totals stay.
    """

    def __init__(self, clock: Callable[[], float], window_s: float = 15.0, stale_after_s: float = 5.0) -> None:
        self._clock = clock
        self._window_s = window_s
        self._stale_after_s = stale_after_s
        self._changes: dict[str, tuple[float, float]] = {}
        self._counters = Totals[CounterKey]()
        self._latencies = LatencyTotals()
        self._history: deque[tuple[float, ServiceView]] = deque()
        self._roster = Roster()
        self._books: dict[str, Books] = {}

    def observe(self, reading: Reading) -> ServiceReport:
        """Take in one look, and report."""
        now_s = self._clock()
        fresh = [snapshot for snapshot in reading.snapshots if self._is_fresh(snapshot, now_s)]
        view = merge(fresh, reading.node_names)
        self._history.append((now_s, view))
        while len(self._history) > 2 and now_s - self._history[1][0] >= self._window_s:
            self._history.popleft()
        for replica in view.replicas.values():
            if replica.status is not None:
                self._counters.update(
                    replica.address.replica_id, replica.address.started_at, _replica_counts(replica, replica.status)
                )
        for snapshot in reading.snapshots:
            self._counters.update(snapshot.router_id, 0.0, _router_counts(snapshot))
            self._latencies.update(snapshot)
        absent = self._roster.absent(view, reading.targets)
        models = sorted({*_models(view), *(model for model, replicas in absent.items() if replicas)})
        known = absent if reading.targets else {}
        return ServiceReport(
            view=view,
            models={
                model: self._model_report(
                    _quarantine(model_counters(view, model, now_s, known.get(model)), reading.quarantined),
                    model,
                    view,
                    reading.baselines,
                )
                for model in models
            },
            counters=dict(self._counters.items()),
            histograms=self._latencies.histograms(),
            num_routers=len(fresh),
            costs=reading.costs if reading.costs and self._is_told(reading.costs, now_s) else None,
        )

    def _is_fresh(self, snapshot: RouterSnapshot, now_s: float) -> bool:
        return self._unchanged_s(snapshot.router_id, snapshot.taken_at, now_s) <= self._stale_after_s

    def _is_told(self, costs: Costs, now_s: float) -> bool:
        return self._unchanged_s("controller/costs", costs.time_s, now_s) <= COSTS_STALE_S

    def _unchanged_s(self, name: str, taken_at: float, now_s: float) -> float:
        """By this process's clock, as those of others' hosts may differ."""
        old, changed_s = self._changes.get(name, (None, now_s))
        if old != taken_at:
            changed_s = now_s
        self._changes[name] = (taken_at, changed_s)
        return now_s - changed_s

    def _model_report(
        self, counters: ModelCounters, model: str, view: ServiceView, baselines: Sequence[Baseline]
    ) -> ModelReport:
        samples = [model_counters(past, model, time_s) for time_s, past in self._history]
        published = {
            yardstick_name(baseline.key.accelerator, baseline.key.tp): baseline
            for baseline in baselines
            if baseline.key.model == model
        }
        books = self._books.setdefault(model, Books(WINDOWS_S[-1], HOLE_AFTER_S))
        books.look(counters, {name: baseline.yardstick for name, baseline in published.items()})
        known_s = max((replica.service_s for replica in counters.replicas), default=0.0)
        windows = {seconds: books.window(seconds, known_s=known_s) for seconds in WINDOWS_S}
        return ModelReport(
            view=view.models.get(model, ModelView(0)),
            replica_tokens_per_s=tokens_per_s(samples),
            baselines=published,
            ledgers={seconds: replicas for seconds, replicas in windows.items() if replicas},
        )


def _quarantine(counters: ModelCounters, quarantined: frozenset[str]) -> ModelCounters:
    if not quarantined:
        return counters
    return replace(
        counters,
        replicas=tuple(
            replace(replica, presence=Presence.QUARANTINED)
            if replica.replica in quarantined and replica.presence is Presence.SERVING
            else replica
            for replica in counters.replicas
        ),
    )


def _models(view: ServiceView) -> list[str]:
    return sorted({*view.models, *(replica.address.model for replica in view.replicas.values())})


def _replica_counts(replica: ReplicaView, status: ReplicaStatus) -> dict[CounterKey, float]:
    address, stats = replica.address, status.stats
    labels = (address.model, address.pool, replica.node, address.replica_id, address.accelerator)
    return {
        ("output_tokens", labels): stats.total_output_tokens,
        ("prompt_tokens", labels): stats.total_prompt_tokens,
        ("cached_prompt_tokens", labels): stats.total_cached_prompt_tokens,
        ("recomputed_tokens", labels): stats.total_recomputed_tokens,
        ("preemptions", labels): stats.total_preemptions,
        ("engine_steps", labels): stats.total_steps,
        ("replica_seconds", (*labels, "idle")): status.idle_s,
        ("replica_seconds", (*labels, "busy")): status.busy_s,
        ("replica_seconds", (*labels, "overhead")): status.overhead_s,
    }


def _router_counts(snapshot: RouterSnapshot) -> dict[CounterKey, float]:
    counts: dict[CounterKey, float] = {}
    for model in snapshot.models:
        counts["requests_continued", (model.model,)] = model.num_continued
        counts["requests", (model.model, "finished")] = model.num_finished
        counts["requests", (model.model, "failed")] = model.num_failed
        counts["requests", (model.model, "aborted")] = model.num_aborted
        counts["requests", (model.model, "refused")] = model.num_refused
    return counts
