"""The ledger of a run, and the baseline that a run on one node is for those on more."""

import statistics
from collections.abc import Sequence
from dataclasses import replace

from ...deployments.addresses import ReplicaAddress
from ..baseline import Baseline, BaselineKey
from ..ledger import Ledger, ModelCounters, account, fit_saturation, spans
from ..provenance import provenance
from ..service_view import yardstick_name
from .client import ClientResult
from .figures import percentiles_of
from .record import BaselineFacts
from .rules import Rules
from .scenarios import Scenario


def baseline_key(replica: ReplicaAddress, rules: Rules, scenario: Scenario) -> BaselineKey:
    """What the baseline of this workload and scenario is kept under."""
    return BaselineKey(
        model=replica.model,
        accelerator=replica.accelerator,
        tp=replica.tp,
        workload=f"{rules.name}-{scenario}",
    )


def baseline_of(
    key: BaselineKey,
    replicas: Sequence[ReplicaAddress],
    node: str,
    results: Sequence[ClientResult],
) -> Baseline:
    """Out of the repeats on one node; latencies are those of the repeat with the median rate. It has a step-time
    curve if the load's beginning and end had small batches (see `fit_curve`).

    The weights are the caller's to fill in."""
    rates = [result.num_tokens / result.end_s for result in results]
    median = statistics.median_low(rates)
    typical = results[rates.index(median)]
    in_flight = statistics.fmean(_in_flight(result.counters) for result in results) / len(replicas)
    told = [
        span for result in results for seen in (result.counters, result.counters_of_little) for span in spans(seen)
    ]
    saturation, curve = fit_saturation(told, spans(typical.counters))
    return Baseline(
        key=key,
        weights="",
        engine=replicas[0].engine,
        settings=replicas[0].settings,
        node=node,
        num_replicas=len(replicas),
        concurrency=max(1, round(in_flight)),
        num_in_flight=max(in_flight, 1e-3),
        tokens_per_s=median,
        repeats=rates,
        window_s=typical.end_s,
        ttft_s=percentiles_of(typical.ttft_s),
        tpot_s=percentiles_of(typical.tpot_s),
        e2e_s=percentiles_of(typical.e2e_s),
        step_times=[],
        curve=curve,
        saturation=saturation,
        provenance=provenance(),
    )


def baseline_facts(baseline: Baseline) -> BaselineFacts:
    """As a record keeps it."""
    return BaselineFacts(
        node=baseline.node,
        tokens_per_s=baseline.tokens_per_s,
        repeats=baseline.repeats,
        date=baseline.provenance.date,
        kept=baseline.model_dump(mode="json"),
    )


def ledger_of(result: ClientResult, baseline: Baseline | None) -> Ledger | None:
    """From LoadGen's first query to the last answer; None without a baseline.

    The baseline's run has a beginning and an end without full load too, and its batch is the mean over all of it.
    So what is lost for want of demand at both ends pays, as far as it goes, for batches above that mean between.
    """
    if baseline is None:
        return None
    until_s = result.counters[0].time_s + result.end_s + 1.0
    within = [sample for sample in result.counters if sample.time_s <= until_s]
    yardsticks = {yardstick_name(baseline.key.accelerator, baseline.key.tp): baseline.yardstick}
    ledger = account(within, yardsticks, measured=result.num_tokens / result.end_s)
    return None if ledger is None else _ends_paid(ledger)


def _ends_paid(ledger: Ledger) -> Ledger:
    columns = dict(ledger.columns)
    paid = max(0.0, min(columns["no demand"], -columns["underfilled"]))
    columns["no demand"] -= paid
    columns["underfilled"] += paid
    return replace(ledger, columns=columns)


def _in_flight(samples: Sequence[ModelCounters]) -> float:
    """Requests in the engines, mean over the run."""
    return statistics.fmean(sample.num_in_flight - sample.num_queued for sample in samples)
