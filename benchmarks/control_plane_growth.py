"""growth: the same at growing size, and what it costs the router."""

import argparse

from control_plane_fleet import fleet_config, num_cores, start_fleet
from control_plane_report import Goal, cores_by_part, print_goals, told_cores
from control_plane_runs import Times, saturate, window_figures
from control_plane_scenarios import ACCELERATOR, print_cpu, singles_tokens_per_s
from nfold.cluster.service import Progress
from nfold.models.errors import NfoldError

GROWTH_PROFILE = "gpt-oss-120b"
GROWTH_SIZES = (8, 87, 176, 256, 512)
GROWTH_GOAL = 0.98
# An answer takes three minutes in a full batch. Until then rates rise; later they swing by 4 % within minutes.
WARMUP_S = 300.0
WINDOW_S = 160.0
# Of the machine's cores: half as many accelerators again would not fit.
FULL_SHARE = 0.9

Row = dict[str, float | None]


def growth(args: argparse.Namespace, progress: Progress) -> dict[str, object]:
    """GPT-OSS-120B Offline at growing size: rate against linear, and what a token and a step cost the router."""
    times = Times(args.warmup or WARMUP_S, args.seconds or WINDOW_S)
    sizes = [args.accelerators] if args.accelerators else list(GROWTH_SIZES)
    single = 0.0
    rows: list[Row] = []
    stopped = ""
    for size in sizes:
        try:
            single, row = _at_size(size, single, args, times, progress)
        except NfoldError as error:
            if not rows:
                raise
            stopped = f"stopped at {size} accelerators: {str(error)[:300]}"
            break
        rows.append(row)
        cores = cores_by_part(row)
        own = sum(cores.values())
        if own > FULL_SHARE * num_cores():
            stopped = (
                f"stopped after {size} accelerators: they take {own:.2f} of this machine's {num_cores()} cores: "
                f"{told_cores(cores)}"
            )
            break
    first, last = rows[0], rows[-1]
    grown = _ratio(last, first, "router_cpu_us_per_step")
    print_goals(
        f"Growth, {ACCELERATOR}, {GROWTH_PROFILE}, Offline",
        [
            *(
                Goal(f"{row['accelerators']} accelerators, of linear", row["efficiency"], GROWTH_GOAL, "%")
                for row in rows
            ),
            Goal("router CPU per step, last over first", grown, 1.0, "x", at_least=False),
        ],
    )
    print("  published, 512 accelerators: 5.75M tokens/s Offline, about 74 % of linear")
    print(f"  {stopped}" if stopped else "  every size was carried")
    return {"single_tokens_per_s": single, "added_ttft_p99_ms": None, **last, "rows": rows, "stopped": stopped}


def _at_size(
    size: int, single: float, args: argparse.Namespace, times: Times, progress: Progress
) -> tuple[float, Row]:
    """What one accelerator gives, measured if `single` is 0, and the figures of `size`."""
    with start_fleet(
        fleet_config([(ACCELERATOR, size)], GROWTH_PROFILE, "offline", port=args.port), progress
    ) as fleet:
        single = single or singles_tokens_per_s(fleet, args, times, progress)
        progress(f"{size} accelerators, {fleet.num_nodes} nodes")
        [window] = saturate(fleet, [fleet.replicas], times, progress, seed=args.seed + 1000)
    figures = window_figures(window)
    share = window.tokens_per_s / (size * single)
    router_s = window.cpu.router / max(window.end.num_steps - window.begin.num_steps, 1)
    print_cpu(figures)
    progress(f"{size} accelerators: {window.tokens_per_s:,.0f} tokens/s, {share:.1%} of linear")
    return single, {"accelerators": size, "efficiency": share, "router_cpu_us_per_step": router_s * 1e6, **figures}


def _ratio(last: Row, first: Row, key: str) -> float | None:
    a, b = last[key], first[key]
    return a / b if a is not None and b else None
