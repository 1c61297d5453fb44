"""The Prometheus side of the observer: a `ServiceReport` as metric families.

Names follow Prometheus's conventions (prometheus.io/docs/practices/naming): base units, `_total` for counters.
Rates and efficiency per pool or node are left to PromQL: both the tokens and the baselines carry replica labels.
Whatever is said of a model has the label `simulated` too: `true` or `false`.
"""

from collections.abc import Callable, Collection, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from ..deployments.router_stats import HistogramSnapshot
from .ledger import total
from .observer import ServiceReport
from .service_view import ReplicaView

REPLICA_LABELS = ("model", "pool", "node", "replica", "accelerator")

# Name of the total in ServiceReport: (metric, what it is, labels).
COUNTERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "output_tokens": ("nfold_output_tokens", "Tokens generated.", REPLICA_LABELS),
    "prompt_tokens": ("nfold_prompt_tokens", "Prompt tokens taken in.", REPLICA_LABELS),
    "cached_prompt_tokens": (
        "nfold_cached_prompt_tokens",
        "Prompt tokens that the prefix cache saved.",
        REPLICA_LABELS,
    ),
    "recomputed_tokens": ("nfold_recomputed_tokens", "Tokens computed again after a preemption.", REPLICA_LABELS),
    "preemptions": ("nfold_preemptions", "Requests preempted for want of KV blocks.", REPLICA_LABELS),
    "engine_steps": ("nfold_engine_steps", "Steps of the engine.", REPLICA_LABELS),
    "replica_seconds": (
        "nfold_replica_seconds",
        "Time in service: idle (no work), busy (in a step), overhead (work, but between steps).",
        (*REPLICA_LABELS, "state"),
    ),
    "requests": ("nfold_requests", "Requests that ended, by outcome.", ("model", "outcome")),
    "requests_continued": ("nfold_requests_continued", "Requests moved off a dead replica.", ("model",)),
}
HISTOGRAMS = {
    "ttft": ("nfold_time_to_first_token_seconds", "From submission to the first token, queueing included."),
    "tpot": ("nfold_time_per_output_token_seconds", "Time per output token after the first."),
    "e2e": ("nfold_request_seconds", "From submission to the end, queueing included."),
}


class ServiceCollector(Collector):
    """Gives Prometheus whatever `report` returns at the moment of the scrape.

    Args:
        simulated: models whose engines are simulated.
    """

    def __init__(self, report: Callable[[], ServiceReport], simulated: Collection[str] = ()) -> None:
        self._report = report
        self._simulated = frozenset(simulated)

    def describe(self) -> list[Metric]:
        """Nothing: registering must not take a report."""
        return []

    def collect(self) -> Iterator[Metric]:
        report = self._report()
        for families in (_counters, _replica_gauges, _model_gauges, _cost_gauges, _histograms):
            for family in families(report):
                family.samples = [self._marked(sample) for sample in family.samples]
                yield family
        yield GaugeMetricFamily("nfold_gateways", "Gateways that are heard of.", value=report.num_routers)

    def _marked(self, sample: Sample) -> Sample:
        is_simulated = "true" if sample.labels["model"] in self._simulated else "false"
        return sample._replace(labels={**sample.labels, "simulated": is_simulated})


def _counters(report: ServiceReport) -> Iterator[Metric]:
    families = {name: CounterMetricFamily(*COUNTERS[name][:2], labels=COUNTERS[name][2]) for name in COUNTERS}
    for (name, labels), count in report.counters.items():
        families[name].add_metric(labels, count)
    yield from families.values()


def _replica_labels(replica: ReplicaView) -> tuple[str, ...]:
    address = replica.address
    return (address.model, address.pool, replica.node, address.replica_id, address.accelerator)


def _replica_gauges(report: ServiceReport) -> Iterator[Metric]:
    up = GaugeMetricFamily("nfold_replica_up", "1 when the replica answers.", labels=REPLICA_LABELS)
    running = GaugeMetricFamily("nfold_requests_running", "Requests in the engine's steps.", labels=REPLICA_LABELS)
    waiting = GaugeMetricFamily("nfold_requests_waiting", "Requests in the engine's queue.", labels=REPLICA_LABELS)
    blocks = GaugeMetricFamily("nfold_kv_blocks", "KV blocks that there are.", labels=REPLICA_LABELS)
    used = GaugeMetricFamily("nfold_kv_blocks_used", "KV blocks in use.", labels=REPLICA_LABELS)
    baseline = GaugeMetricFamily(
        "nfold_baseline_tokens_per_second", "The replica's share of its node's baseline.", labels=REPLICA_LABELS
    )
    for replica in report.view.replicas.values():
        labels = _replica_labels(replica)
        up.add_metric(labels, float(replica.alive))
        if not replica.alive:
            continue
        if replica.status is not None:
            stats = replica.status.stats
            running.add_metric(labels, stats.num_running)
            waiting.add_metric(labels, stats.num_waiting)
            blocks.add_metric(labels, stats.num_kv_blocks)
            used.add_metric(labels, stats.num_kv_blocks_used)
        measured = report.models[replica.address.model].baselines.get(replica.yardstick)
        if measured is not None:
            baseline.add_metric(labels, measured.yardstick.tokens_per_s)
    yield from (up, running, waiting, blocks, used, baseline)


def _model_gauges(report: ServiceReport) -> Iterator[Metric]:
    queued = GaugeMetricFamily("nfold_requests_queued", "Requests that wait in gateways.", labels=("model",))
    for model, entry in report.models.items():
        queued.add_metric((model,), entry.view.num_queued)
    yield queued
    yield from _ledger_gauges(report)


def _ledger_gauges(report: ServiceReport) -> Iterator[Metric]:
    """Of each model over each window; of each replica over the shortest: PromQL sums them up to pools and nodes."""
    labels = ("model", "window")
    measured = GaugeMetricFamily("nfold_measured_tokens_per_second", "Output rate.", labels=labels)
    provisioned = GaugeMetricFamily("nfold_provisioned_tokens_per_second", "Sum of baselines.", labels=labels)
    lost = GaugeMetricFamily(
        "nfold_lost_tokens_per_second",
        "The gap between the sum of baselines and what was measured; the reasons sum to it.",
        labels=(*labels, "reason"),
    )
    efficiency = GaugeMetricFamily(
        "nfold_scaling_efficiency_ratio",
        "Measured over the sum of baselines; saturated windows only.",
        labels=labels,
    )
    hole = GaugeMetricFamily(
        "nfold_ledger_hole_seconds", "Of the window, what is not accounted for: nobody looked.", labels=labels
    )
    of_replicas = GaugeMetricFamily(
        "nfold_replica_lost_tokens_per_second",
        "The same gap of each provisioned replica, over the shortest window.",
        labels=("model", "pool", "node", "replica", "reason"),
    )
    for model, entry in report.models.items():
        for seconds, replicas in entry.ledgers.items():
            ledger = total(replicas.values())
            assert ledger is not None, "windows without replicas are left out"
            at = (model, f"{seconds:g}s")
            measured.add_metric(at, ledger.measured)
            provisioned.add_metric(at, ledger.baseline)
            hole.add_metric(at, ledger.hole_s)
            for reason, rate in ledger.losses.items():
                lost.add_metric((*at, reason.replace(" ", "_")), rate)
            if ledger.efficiency is not None:
                efficiency.add_metric(at, ledger.efficiency)
        for place, ledger in entry.ledgers[min(entry.ledgers)].items() if entry.ledgers else ():
            for reason, rate in ledger.losses.items():
                names = (model, place.pool, place.node, place.replica, reason.replace(" ", "_"))
                of_replicas.add_metric(names, rate)
    yield from (measured, provisioned, lost, efficiency, hole, of_replicas)


def _cost_gauges(report: ServiceReport) -> Iterator[Metric]:
    labels = ("model", "part", "currency")
    hour = GaugeMetricFamily(
        "nfold_cost_per_hour",
        "Price of the model's nodes, by what is paid for; the parts sum to it.",
        labels=labels,
    )
    million = GaugeMetricFamily(
        "nfold_cost_per_million_output_tokens", "The same for a million tokens at the present rate.", labels=labels
    )
    if (costs := report.costs) is not None:
        for model, cost in costs.models.items():
            for family, parts in ((hour, cost.parts), (million, cost.parts_per_million)):
                for name, part in parts.items():
                    family.add_metric((model, name.replace("-", "_"), costs.currency), part)
    yield from (hour, million)


def _histograms(report: ServiceReport) -> Iterator[Metric]:
    families = {
        name: HistogramMetricFamily(metric, text, labels=("model", "pool"))
        for name, (metric, text) in HISTOGRAMS.items()
    }
    for (name, model, pool), histogram in report.histograms.items():
        families[name].add_metric((model, pool), _buckets(histogram), histogram.total_s)
    yield from families.values()


def _buckets(histogram: HistogramSnapshot) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound, as Prometheus has them."""
    bounds = [*(str(bound) for bound in histogram.bounds_s), "+Inf"]
    total, buckets = 0, list[tuple[str, float]]()
    for bound, count in zip(bounds, histogram.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
