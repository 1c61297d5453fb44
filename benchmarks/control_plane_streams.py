"""streams: HTTP clients of the real gateway while Offline work fills the rest."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from control_plane_drive import Drive, run_windows
from control_plane_fleet import MODEL, fleet_config, open_router, profile_of, start_fleet
from control_plane_report import Goal, latency_figures, print_goals
from control_plane_requests import Prompts, backlog
from control_plane_runs import Figures, Times, queries_per_s, window_figures
from control_plane_scenarios import ACCELERATOR, MODEL_PROFILE, PUBLISHED_ACCELERATORS, print_cpu
from nfold.cluster.service import Progress
from nfold.deployments.router import Router

STREAMS = 200
STREAM_TOKENS = 128
# Ids that the simulated model's tokenizer has.
STREAM_VOCAB = 127


def streams(args: argparse.Namespace, progress: Progress) -> dict[str, object]:
    """Streaming clients of the gateway while a router of this process fills the engines with Offline work."""
    from nfold.cluster.service import api_url

    count = args.accelerators or PUBLISHED_ACCELERATORS
    num_streams = 20 if args.quick else STREAMS
    times = Times(args.warmup or 90.0, args.seconds or 60.0)
    config = fleet_config([(ACCELERATOR, count)], MODEL_PROFILE, "offline", port=args.port)
    with start_fleet(config, progress) as fleet, open_router(fleet) as router:
        profile, _ = profile_of(fleet.replicas[0])
        slots = sum(replica.max_num_seqs for replica in fleet.replicas)
        rate = sum(map(queries_per_s, fleet.replicas))
        filling = slots - num_streams - count  # the clients find a slot wherever they are sent
        seconds = times.warmup_s + times.window_s
        requests = backlog(profile, round(3 * slots + 1.2 * rate * seconds), num_warm=slots, seed=args.seed)
        drive = Drive(router, MODEL, requests, Prompts(profile.vocab_size), max_open=filling)
        command = [sys.executable, str(Path(__file__).with_name("control_plane_http.py")), "--url", api_url(config)]
        command += ["--model", MODEL, "--vocab", str(STREAM_VOCAB), "--streams", str(num_streams)]
        command += ["--tokens", str(16 if args.quick else STREAM_TOKENS)]
        command += ["--warmup", str(times.warmup_s), "--window", str(times.window_s)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as clients:
            before = _steps(router)
            [window] = run_windows([drive], fleet.meter, times.warmup_s, times.window_s, progress, settle_s=0.0)
            after = _steps(router)
            assert clients.stdout is not None
            while clients.poll() is None:  # they end the streams that they have; the engines stay full
                drive.turn()
            seen: Figures = json.loads(clients.stdout.read().splitlines()[-1])
        own = latency_figures("own_tpot", drive.tpot_s(times.warmup_s, seconds))
    step_ms = 1e3 * (after[1] - before[1]) / max(after[0] - before[0], 1)
    figures = window_figures(window)
    over_ms = None
    if seen["client_tpot_p99_ms"] is not None and own["own_tpot_p99_ms"] is not None:
        over_ms = seen["client_tpot_p99_ms"] - own["own_tpot_p99_ms"]
    print_goals(
        f"{num_streams} streaming HTTP clients beside Offline work, {count} x {ACCELERATOR}",
        [
            Goal("their TPOT p99 beyond the engines'", over_ms, step_ms, "ms", False, note="one step"),
            Goal("their failed requests", seen["num_failed"], 0, at_least=False),
        ],
    )
    print(
        f"  clients: TPOT p50 {seen['client_tpot_p50_ms'] or 0:.1f}, p99 {seen['client_tpot_p99_ms'] or 0:.1f} ms, "
        f"gaps p99 {seen['client_gap_p99_ms'] or 0:.1f} ms\n"
        f"  engines: TPOT p99 {own['own_tpot_p99_ms'] or 0:.1f} ms, step {step_ms:.1f} ms"
    )
    print_cpu(figures)
    return {
        "accelerators": count,
        "num_streams": num_streams,
        "efficiency": None,
        "added_ttft_p99_ms": None,
        "step_ms": step_ms,
        "tpot_p99_over_ms": over_ms,
        **figures,
        **own,
        **seen,
    }


def _steps(router: Router) -> tuple[int, float]:
    """Steps and their seconds so far, of all engines, as last told."""
    stats = [replica.status.stats for replica in router.snapshot().replicas if replica.status]
    return sum(each.total_steps for each in stats), sum(each.total_step_s for each in stats)
