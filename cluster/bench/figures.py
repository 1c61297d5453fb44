"""Figures of one performance run, out of LoadGen's log and what the client saw; and when they do not count."""

import json
from pathlib import Path

import numpy as np

from ...models.errors import StateError
from ..latency import Percentiles
from ..ledger import Ledger
from .client import F64, ClientResult
from .loadgen_log import LoadgenLog
from .record import ClientFacts, LedgerFacts, RunFigures
from .scenarios import Scenario

# Of the queries: one in a thousand failed or short, and the run is void.
MAX_BAD_SHARE = 0.001
# A client that is busy for more of the run, or comes nearer to its own roofline, is the limit itself.
MAX_BUSY_SHARE = 0.9
MAX_DELAYED_SHARE = 0.4
MAX_ROOFLINE_SHARE = 0.8
DISTRIBUTIONS = "distributions.npz"
_MAX_KEPT = 200_000


def run_figures(
    log: LoadgenLog,
    result: ClientResult,
    roofline_tokens_per_s: float | None,
    ledger: Ledger | None,
    logs: str,
) -> RunFigures:
    """
    Raises:
        StateError: the client, not the service, was the limit; or the log has no result.
    """
    scenario = result.settings.scenario
    tokens_per_s = result.num_tokens / result.end_s if result.end_s > 0 else 0.0
    check_client(result.busy_share, tokens_per_s, roofline_tokens_per_s, result.delayed_share)
    figure = _figure(scenario, log)
    if figure is None:
        raise StateError(f"LoadGen gave no result: {'; '.join(log.errors) or 'its log has none'}")
    return RunFigures(
        figure=figure,
        unit="s" if scenario.lower_is_better else "tokens/s",
        valid=log.valid,
        void=void_reasons(result.num_queries, result.num_failed, result.num_short, result.first_error),
        problems=[*log.errors, *([] if log.valid else _verdicts(log))],
        target_qps=None if scenario.lower_is_better else result.settings.target_qps,
        samples_per_s=result.num_queries / result.end_s if result.end_s > 0 else 0.0,
        tokens_per_s=tokens_per_s,
        num_queries=result.num_queries,
        num_failed=result.num_failed,
        num_short=result.num_short,
        num_tokens=result.num_tokens,
        duration_s=result.end_s,
        ttft_s=percentiles_of(result.ttft_s),
        tpot_s=percentiles_of(result.tpot_s),
        e2e_s=percentiles_of(result.e2e_s),
        node_tokens_per_s={
            node: float(tokens) / result.end_s
            for node, tokens in zip(result.nodes, result.node_tokens[-1], strict=True)
        },
        node_speeds=dict(result.node_speeds),
        client=ClientFacts(
            busy_share=result.busy_share,
            delayed_share=result.delayed_share,
            cpu_cores=result.cpu_s / max(float(result.timeline_s[-1]), 1e-9),
            roofline_tokens_per_s=roofline_tokens_per_s,
        ),
        ledger=None if ledger is None else ledger_facts(ledger),
        logs=logs,
    )


def check_client(
    busy_share: float, tokens_per_s: float, roofline_tokens_per_s: float | None, delayed_share: float = 0.0
) -> None:
    """
    Raises:
        StateError: the figure would be the client's, not the service's.
    """
    if busy_share > MAX_BUSY_SHARE:
        raise StateError(
            f"client-limited, so there is no figure: the load generator was busy for {busy_share:.0%} of the run. "
            "Give it cores of its own"
        )
    if delayed_share > MAX_DELAYED_SHARE:
        raise StateError(
            f"client-limited, so there is no figure: for {delayed_share:.0%} of the run the load generator had "
            "work and no core to do it on. Give it cores of its own"
        )
    if roofline_tokens_per_s is not None and tokens_per_s > MAX_ROOFLINE_SHARE * roofline_tokens_per_s:
        raise StateError(
            f"client-limited, so there is no figure: {tokens_per_s:,.0f} tokens/s is more than "
            f"{MAX_ROOFLINE_SHARE:.0%} of the {roofline_tokens_per_s:,.0f} that this client reaches with a stub. "
            "Give it cores of its own"
        )


def void_reasons(num_queries: int, num_failed: int, num_short: int, first_error: str = "") -> list[str]:
    """Why a run does not count, beside LoadGen's verdict."""
    if num_queries == 0:
        return ["no query was issued"]
    found: list[str] = []
    for what, num in (("failed", num_failed), ("were answered short", num_short)):
        if num / num_queries > MAX_BAD_SHARE:
            said = f"; the first said: {first_error}" if what == "failed" and first_error else ""
            found.append(
                f"{num:,} of {num_queries:,} requests {what} ({num / num_queries:.2%}, at most "
                f"{MAX_BAD_SHARE:.1%}){said}"
            )
    return found


def ledger_facts(ledger: Ledger) -> LedgerFacts:
    return LedgerFacts(
        window_s=ledger.window_s,
        measured=ledger.measured,
        baseline=ledger.baseline,
        efficiency=ledger.efficiency,
        losses=dict(ledger.losses),
    )


def keep_distributions(result: ClientResult, directory: Path) -> None:
    """What the report draws: sorted latencies (float32, thinned past 200,000), tokens over time."""
    np.savez_compressed(
        directory / DISTRIBUTIONS,
        ttft_s=_thinned(result.ttft_s),
        tpot_s=_thinned(result.tpot_s),
        e2e_s=_thinned(result.e2e_s),
        timeline_s=result.timeline_s,
        node_tokens=result.node_tokens,
        nodes=np.array(json.dumps(list(result.nodes))),
    )


def _thinned(values: F64) -> np.ndarray:
    step = max(1, -(-len(values) // _MAX_KEPT))
    return np.sort(values)[::step].astype(np.float32)


def _figure(scenario: Scenario, log: LoadgenLog) -> float | None:
    if scenario is Scenario.SINGLE_STREAM:
        latency_ns = log.number("early_stopping_latency_ss") or log.number("result_90.00_percentile_latency_ns")
        return None if latency_ns is None else latency_ns / 1e9
    if scenario is Scenario.OFFLINE:
        return log.number("result_tokens_per_second", "result_samples_per_second")
    return log.number("result_completed_tokens_per_second", "result_completed_samples_per_sec")


def _verdicts(log: LoadgenLog) -> list[str]:
    """What LoadGen says was not met."""
    keys = (
        "result_min_duration_met",
        "result_min_queries_met",
        "result_perf_constraints_met",
        "early_stopping_met",
    )
    found = [f"{key.removeprefix('result_').replace('_', ' ')}: no" for key in keys if log.values.get(key) is False]
    return found or ["LoadGen calls the result invalid"]


def percentiles_of(values_s: F64) -> Percentiles | None:
    """None when there are no values."""
    if len(values_s) == 0:
        return None
    p50, p90, p99 = np.percentile(values_s, (50, 90, 99))
    return Percentiles(p50=float(p50), p90=float(p90), p99=float(p99))
