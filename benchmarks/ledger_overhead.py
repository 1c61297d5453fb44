"""What the ledger and the metrics cost: the same load with and without them, on simulated accelerators, in real
time.

    python benchmarks/ledger_overhead.py [--accelerators 87] [--rounds 5] [--keep benchmarks/results]

Each round starts two services, with and without, in an order that changes, and saturates them with the same
requests: Ray, Serve, the data path and the router are the real ones. Off means: no observer and no endpoint, and
replicas do not account for their steps; gateways still publish what they know. The two runs of a round are
compared; `cost_percent` is of tokens/s, by the median of all rounds. Last line: JSON.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from control_plane_fleet import fleet_config, start_fleet
from control_plane_runs import Times, saturate
from kept_results import keep

ACCELERATOR, MODEL_PROFILE, SCENARIO = "MI355X", "llama-2-70b", "offline"
GOAL_PERCENT = 0.5


def measure(count: int, times: Times, *, enabled: bool, port: int, seed: int) -> tuple[float, float]:
    """Tokens/s, and CPU seconds of all processes of the service and of this one per million tokens."""
    config = fleet_config([(ACCELERATOR, count)], MODEL_PROFILE, SCENARIO, port=port, name="ledger-overhead")
    metrics = config.metrics.model_copy(update={"enabled": enabled})
    config = config.model_copy(update={"metrics": metrics})
    with start_fleet(config, lambda text: None) as fleet:
        [window] = saturate(fleet, [fleet.replicas], times, lambda text: None, seed=seed)
    cpu_s = window.cpu.router + window.cpu.engines + window.cpu.others
    return window.tokens_per_s, cpu_s / window.num_tokens * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerators", type=int, default=87)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=float, default=60.0, help="seconds before each window")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each window")
    parser.add_argument("--keep", type=Path, help="a folder: also write the last line there, as kept results are")
    parser.add_argument("--port", type=int, default=8780)
    args = parser.parse_args()
    times = Times(args.warmup, args.seconds)
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for turn in range(args.rounds):
        for enabled in (True, False) if turn % 2 else (False, True):
            rate, cpu_s = measure(args.accelerators, times, enabled=enabled, port=args.port, seed=turn)
            found[enabled].append((rate, cpu_s))
            said = f"{rate:,.0f} tokens/s, {cpu_s:.3f} CPU s per million"
            print(f"  {'on ' if enabled else 'off'} {said}", flush=True)
        print(f"  round {turn + 1}: {_cost_percents(found)[-1]:+.2f} %", flush=True)
    costs = _cost_percents(found)
    cost = median(costs)
    print(
        f"SIMULATED: ledger and metrics cost {cost:.2f} % of tokens/s, round by round {min(costs):.2f} to "
        f"{max(costs):.2f} (goal: under {GOAL_PERCENT})"
    )
    from nfold.cluster.provenance import provenance

    line = {
        "benchmark": "ledger_overhead",
        "simulated": True,
        "accelerators": args.accelerators,
        "seconds": args.seconds,
        "tokens_per_s_on": median(rate for rate, _ in found[True]),
        "tokens_per_s_off": median(rate for rate, _ in found[False]),
        "cost_percent": cost,
        "cost_percent_by_round": costs,
        "cpu_s_per_million_tokens_on": median(cpu_s for _, cpu_s in found[True]),
        "cpu_s_per_million_tokens_off": median(cpu_s for _, cpu_s in found[False]),
        "runs": {"on": found[True], "off": found[False]},
        "provenance": provenance().model_dump(),
    }
    keep(f"ledger_overhead-{args.accelerators}", line, args.keep)
    print(json.dumps(line))


def _cost_percents(found: Mapping[bool, Sequence[tuple[float, float]]]) -> list[float]:
    """Of tokens/s, by round."""
    return [100.0 * (1.0 - on / off) for (on, _), (off, _) in zip(found[True], found[False], strict=True)]


if __name__ == "__main__":
    main()
