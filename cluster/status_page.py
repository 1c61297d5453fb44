"""The service as JSON for people and for `nfold status`: the same figures that Prometheus scrapes."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..deployments.router_stats import HistogramSnapshot
from .controller.costs import Costs
from .ledger import Ledger, Place, total
from .observer import ModelReport, ServiceReport
from .service_view import ReplicaView


def status_json(report: ServiceReport, simulated: Collection[str] = ()) -> dict[str, Any]:
    """`{"models": {name: {...}}, "gateways": int}`; rates are output tokens/s over the ledger's window.

    Args:
        simulated: models whose engines are simulated.
    """
    return {
        "gateways": report.num_routers,
        "models": {
            name: {"simulated": name in simulated, **_model(name, entry, report)}
            for name, entry in report.models.items()
        },
    }


def _model(name: str, entry: ModelReport, report: ServiceReport) -> dict[str, Any]:
    replicas = [view for view in report.view.replicas.values() if view.address.model == name]
    return {
        "tokens_per_s": sum(entry.replica_tokens_per_s.values()),
        "num_queued": entry.view.num_queued,
        "num_in_flight": sum(replica.num_in_flight for replica in replicas),
        "requests": {
            labels[1]: int(total)
            for (counter, labels), total in report.counters.items()
            if counter == "requests" and labels[0] == name
        },
        "latency_s": {
            f"{latency}_{share}": quantile(histogram, int(share[1:]) / 100)
            for (latency, model, _), histogram in report.histograms.items()
            for share in ("p50", "p99")
            if model == name
        },
        "baselines": [
            {
                "yardstick": yardstick,
                "workload": baseline.key.workload,
                "tokens_per_s_per_replica": baseline.yardstick.tokens_per_s,
                "date": baseline.provenance.date,
                "simulated": baseline.simulated,
            }
            for yardstick, baseline in entry.baselines.items()
        ],
        "ledger": None if entry.ledger is None else _ledger(entry.ledger),
        "ledgers": {f"{seconds:g}": _window(replicas) for seconds, replicas in entry.ledgers.items()},
        "cost": _cost(name, report.costs),
        "replicas": [_replica(replica, entry) for replica in replicas],
    }


def _cost(model: str, costs: Costs | None) -> dict[str, Any] | None:
    cost = costs.models.get(model) if costs else None
    if costs is None or cost is None:
        return None
    return {
        "currency": costs.currency,
        "per_hour": cost.parts,
        "per_million_tokens": cost.parts_per_million,
    }


def _window(replicas: Mapping[Place, Ledger]) -> dict[str, Any]:
    """One window: the model, and its parts by name."""
    parts: dict[str, dict[str, list[Ledger]]] = {"pools": {}, "nodes": {}, "replicas": {}}
    for place, ledger in replicas.items():
        for kind, name in (("pools", place.pool), ("nodes", place.node), ("replicas", place.replica)):
            parts[kind].setdefault(name, []).append(ledger)
    return {
        "model": _ledger_of(list(replicas.values())),
        **{kind: {name: _ledger_of(own) for name, own in names.items()} for kind, names in parts.items()},
    }


def _ledger_of(parts: Sequence[Ledger]) -> dict[str, Any]:
    ledger = total(parts)
    assert ledger is not None, "there is one part at least"
    return _ledger(ledger)


def _ledger(ledger: Ledger) -> dict[str, Any]:
    return {
        "window_s": ledger.window_s,
        "measured": ledger.measured,
        "baseline": ledger.baseline,
        "losses": ledger.losses,
        "saturated": ledger.saturated,
        "efficiency": ledger.efficiency,
        "headroom": ledger.headroom,
        "hole_s": ledger.hole_s,
    }


def _replica(replica: ReplicaView, entry: ModelReport) -> dict[str, Any]:
    address, status = replica.address, replica.status
    told = {} if status is None else {"running": status.stats.num_running, "waiting": status.stats.num_waiting}
    kv = {} if status is None else {"kv_used": status.stats.num_kv_blocks_used / max(1, status.stats.num_kv_blocks)}
    return {
        "replica": address.replica_id,
        "pool": address.pool,
        "node": replica.node,
        "accelerator": address.accelerator,
        "engine": address.engine,
        "tp": address.tp,
        "state": replica.state,
        "up": replica.alive,
        "tokens_per_s": entry.replica_tokens_per_s.get(address.replica_id),
        **told,
        **kv,
    }


def quantile(histogram: HistogramSnapshot, share: float) -> float | None:
    """Upper bound of the bucket in which the quantile lies; None when empty or above the last bound."""
    wanted, seen = share * sum(histogram.counts), 0
    for bound_s, count in zip(histogram.bounds_s, histogram.counts, strict=False):
        seen += count
        if seen >= wanted and seen > 0:
            return bound_s
    return None
