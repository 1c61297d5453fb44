"""offline, server and interactive: the published 87-accelerator runs of Llama 2 70B, on simulated ones."""

import argparse

from control_plane_fleet import Fleet, fleet_config, num_cores, start_fleet
from control_plane_report import Goal, print_goals, what_is_full
from control_plane_runs import Figures, Times, arrive, saturate, window_figures
from nfold.cluster.config import NfoldConfig
from nfold.cluster.service import Progress

ACCELERATOR, MODEL_PROFILE = "MI355X", "llama-2-70b"
PUBLISHED_ACCELERATORS = 87
# MLPerf Inference v6.0, closed, AMD, 87x MI355X: tokens/s and queries/s asked for; MLPerf's limits at p99.
PUBLISHED_OFFLINE = 1_042_110
PUBLISHED_QUERIES = {"server": 3650.0, "interactive": 2800.0}
LIMITS_MS = {"server": (2000.0, 200.0), "interactive": (450.0, 40.0)}


def offline(args: argparse.Namespace, progress: Progress) -> dict[str, object]:
    """Saturated: the whole fleet against single accelerators of it, through the same path."""
    times = Times(args.warmup or 90.0, args.seconds or 60.0)
    count = args.accelerators or PUBLISHED_ACCELERATORS
    with start_fleet(scenario_config(args, count, "offline"), progress) as fleet:
        single = singles_tokens_per_s(fleet, args, times, progress)
        progress(f"all {count} accelerators")
        [window] = saturate(fleet, [fleet.replicas], times, progress, seed=args.seed + 1000)
    figures = window_figures(window)
    efficiency = window.tokens_per_s / (count * single)
    goal_tokens = PUBLISHED_OFFLINE * count / PUBLISHED_ACCELERATORS
    print_goals(
        f"Offline, {count} x {ACCELERATOR}, {MODEL_PROFILE}",
        [
            Goal("tokens/s", window.tokens_per_s, goal_tokens, note="published for 87: 1,042,110"),
            Goal(f"of {count} x one accelerator", efficiency, 0.99, "%", note="published: 92.6 %"),
        ],
    )
    print_cpu(figures)
    return {
        "accelerators": count,
        "single_tokens_per_s": single,
        "efficiency": efficiency,
        "added_ttft_p99_ms": None,
        **figures,
    }


def singles_tokens_per_s(fleet: Fleet, args: argparse.Namespace, times: Times, progress: Progress) -> float:
    """Mean rate of a few accelerators that are each measured alone: a router, a load and an engine of its own."""
    count = min(args.singles, len(fleet.replicas))
    groups = [[replica] for replica in fleet.replicas[:: len(fleet.replicas) // count][:count]]
    progress(f"{count} single accelerators, each alone with a router of its own")
    windows = saturate(fleet, groups, times, progress, seed=args.seed)
    rates = [window.tokens_per_s for window in windows]
    progress(f"one accelerator: {sum(rates) / count:,.0f} tokens/s, {min(rates):,.0f} to {max(rates):,.0f}")
    return sum(rates) / count


def server(args: argparse.Namespace, progress: Progress) -> dict[str, object]:
    """Poisson arrivals at the published rate, Server's settings."""
    return _latency_bound("server", args, progress)


def interactive(args: argparse.Namespace, progress: Progress) -> dict[str, object]:
    """Poisson arrivals at the published rate, Interactive's settings."""
    return _latency_bound("interactive", args, progress)


def _latency_bound(scenario: str, args: argparse.Namespace, progress: Progress) -> dict[str, object]:
    count = args.accelerators or PUBLISHED_ACCELERATORS
    rate = args.queries or PUBLISHED_QUERIES[scenario] * count / PUBLISHED_ACCELERATORS
    times = Times(args.warmup or 60.0, args.seconds or 60.0)
    with start_fleet(scenario_config(args, count, scenario), progress) as fleet:
        figures = arrive(fleet, fleet.replicas, rate, times, progress, seed=args.seed)
    ttft_limit, tpot_limit = LIMITS_MS[scenario]
    print_goals(
        f"{scenario.capitalize()}, {count} x {ACCELERATOR}, {MODEL_PROFILE}, {rate:,.0f} queries/s",
        [
            Goal("of offered tokens/s", figures["share_of_offered"], 0.99, "%"),
            Goal("TTFT p99 added", figures["added_ttft_p99_ms"], 20.0, "ms", at_least=False),
            Goal("TTFT p99", figures["ttft_p99_ms"], ttft_limit, "ms", at_least=False, note="MLPerf's limit"),
            Goal("TPOT p99", figures["tpot_p99_ms"], tpot_limit, "ms", at_least=False, note="MLPerf's limit"),
        ],
    )
    print_latencies(figures)
    print_cpu(figures)
    return {"accelerators": count, "efficiency": figures["share_of_offered"], **figures}


def scenario_config(args: argparse.Namespace, count: int, scenario: str) -> NfoldConfig:
    return fleet_config([(ACCELERATOR, count)], MODEL_PROFILE, scenario, port=args.port)


def print_latencies(figures: Figures) -> None:
    """What was seen, what the engines alone would have given, and the difference."""
    parts = [
        f"{name} {value:,.1f} ms"
        for name, key in (
            ("TTFT p50", "ttft_p50_ms"),
            ("p99", "ttft_p99_ms"),
            ("engines alone p50", "engines_ttft_p50_ms"),
            ("p99", "engines_ttft_p99_ms"),
            ("added p50", "added_ttft_p50_ms"),
            ("p99", "added_ttft_p99_ms"),
        )
        if (value := figures.get(key)) is not None
    ]
    print("  " + "   ".join(parts), flush=True)


def print_cpu(figures: Figures) -> None:
    print(
        f"  CPU per million tokens: router {figures['router_cpu_s_per_million_tokens'] or 0:.2f} s, engine hosts "
        f"{figures['engine_cpu_s_per_million_tokens'] or 0:.2f} s   cores: router {figures['router_cores']:.2f}, "
        f"hosts {figures['engine_cores']:.2f}, Ray and gateways {figures['other_cores']:.2f}   "
        f"{figures['steps_per_s']:,.0f} steps/s"
    )
    if full := what_is_full(figures, num_cores()):
        print(f"  {full}")
