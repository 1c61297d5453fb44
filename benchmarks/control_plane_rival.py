"""rival: the router's CPU per token beside that of plain Ray Serve streaming handles."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from control_plane_drive import Drive, run_windows
from control_plane_fleet import MODEL, Fleet, fleet_config, open_router, profile_of, start_fleet
from control_plane_report import Goal, print_goals
from control_plane_requests import Prompts, backlog
from control_plane_runs import Figures, Times, arrive, queries_per_s, window_figures
from control_plane_scenarios import ACCELERATOR, MODEL_PROFILE, PUBLISHED_ACCELERATORS, PUBLISHED_QUERIES
from nfold.cluster.service import Progress
from nfold.deployments.addresses import ReplicaAddress

RIVAL_GOAL = 20.0
RIVAL_ENGINES = 8
RIVAL_LOADS = {"as-it-comes": "16,64", "best": "64,256,1024"}


def rival(args: argparse.Namespace, progress: Progress) -> dict[str, object]:
    """CPU per token: the router at full size and at the rival's loads; Serve as it comes and at its best."""
    count = args.accelerators or PUBLISHED_ACCELERATORS
    times = Times(args.warmup or 60.0, args.seconds or 30.0)
    found = {mode: _rival_loads(args, mode, progress) for mode in RIVAL_LOADS}
    rate = PUBLISHED_QUERIES["server"] * count / PUBLISHED_ACCELERATORS
    short = Times(min(times.warmup_s, 8.0), min(times.window_s, 10.0))
    with start_fleet(
        fleet_config([(ACCELERATOR, count)], MODEL_PROFILE, "server", port=args.port), progress
    ) as fleet:
        progress(f"the router on {count} accelerators at {rate:,.0f} queries/s")
        ours = arrive(fleet, fleet.replicas, rate, times, progress, seed=args.seed, replay=False)
        same: list[Figures] = []
        for load in found["best"]:
            progress(f"the router on {RIVAL_ENGINES} accelerators with {load['num_open']} requests open")
            same.append(
                _closed_loop(
                    fleet, fleet.replicas[:RIVAL_ENGINES], int(load["num_open"] or 0), short, progress, args
                )
            )
    our_total = _total(ours)
    best = {mode: min(loads, key=_total) for mode, loads in found.items()}
    ratios = {mode: _total(load) / our_total for mode, load in best.items()}
    same_ratios = [_total(load) / _total(mine) for load, mine in zip(found["best"], same, strict=True)]
    print(
        "\nCPU seconds per million tokens (simulated accelerators; the simulation's cost is in the engines' part)"
    )
    _print_row(f"router, {count} accelerators", ours)
    for load, mine in zip(found["best"], same, strict=True):
        _print_row(f"router, {RIVAL_ENGINES} accelerators, {load['num_open']} open", mine)
    for mode, loads in found.items():
        for load in loads:
            _print_row(f"Serve {mode}, {RIVAL_ENGINES} accelerators, {load['num_open']} open", load)
    print_goals(
        "Rival: plain Ray Serve streaming handles",
        [
            Goal("times less CPU than Serve at its best", ratios["best"], RIVAL_GOAL, "x"),
            Goal("times less than Serve as it comes", ratios["as-it-comes"], RIVAL_GOAL, "x"),
            *(
                Goal(f"the same at {load['num_open']} open, 8 engines", ratio, RIVAL_GOAL, "x", note="at its best")
                for load, ratio in zip(found["best"], same_ratios, strict=True)
            ),
        ],
    )
    return {
        "accelerators": count,
        "ratio": ratios["best"],
        "ratio_as_it_comes": ratios["as-it-comes"],
        "ratios_same_load": same_ratios,
        "efficiency": ours["share_of_offered"],
        **ours,
        "same_load": same,
        "rival": found,
    }


def _total(figures: Figures) -> float:
    return (figures["router_cpu_s_per_million_tokens"] or 0.0) + (figures["engine_cpu_s_per_million_tokens"] or 0.0)


def _print_row(name: str, figures: Figures) -> None:
    print(
        f"  {name:<46}{figures['tokens_per_s']:>12,.0f} tokens/s  router "
        f"{figures['router_cpu_s_per_million_tokens']:>8.2f}  engines "
        f"{figures['engine_cpu_s_per_million_tokens']:>8.2f}  both {_total(figures):>8.2f}"
    )


def _rival_loads(args: argparse.Namespace, mode: str, progress: Progress) -> list[Figures]:
    """In a process of its own: Serve reads its settings once."""
    progress(f"Ray Serve {mode}")
    window = ("--warmup", "3", "--window", "4") if args.quick else ()
    loads = "16" if args.quick else RIVAL_LOADS[mode]
    command = [sys.executable, str(Path(__file__).parent / "control_plane_rival_serve.py"), "--mode", mode, *window]
    command += ["--engines", str(RIVAL_ENGINES), "--open", loads]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = ""
        for last in process.stdout:
            if not last.startswith("{"):
                print(last, end="", flush=True)
    if process.returncode or not last.startswith("{"):
        raise SystemExit(f"the rival's process ended with {process.returncode}")
    return json.loads(last)["loads"]


def _closed_loop(
    fleet: Fleet,
    replicas: Sequence[ReplicaAddress],
    num_open: int,
    times: Times,
    progress: Progress,
    args: argparse.Namespace,
) -> Figures:
    """So many requests open at all times, as the rival has it."""
    profile, _ = profile_of(replicas[0])
    count = num_open + round(1.5 * sum(map(queries_per_s, replicas)) * (times.warmup_s + times.window_s))
    with open_router(fleet, replicas) as router:
        drive = Drive(
            router, MODEL, backlog(profile, count, seed=args.seed), Prompts(profile.vocab_size), max_open=num_open
        )
        [window] = run_windows([drive], fleet.meter, times.warmup_s, times.window_s, progress, settle_s=0.0)
    return window_figures(window) | {"num_open": num_open}
