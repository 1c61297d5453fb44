"""mixed: three generations of accelerators in one service, near and far."""

import argparse
from collections.abc import Generator
from contextlib import contextmanager

from control_plane_fleet import Fleet, fleet_config, start_fleet
from control_plane_relay import far_away
from control_plane_report import Goal, print_goals
from control_plane_runs import Figures, Times, answer_all, arrive, arrive_each, queries_per_s
from control_plane_scenarios import LIMITS_MS, MODEL_PROFILE, print_cpu, print_latencies
from nfold.cluster.service import Progress
from nfold.deployments.addresses import ReplicaAddress

MIXED = ("MI300X", "MI325X", "MI355X")
MIXED_GOAL = 0.99
FAR_POOL = "MI300X"
FAR_MS = 30.0
# As long as an Offline run is by MLPerf's rules.
OFFLINE_S = 600.0


def mixed(args: argparse.Namespace, progress: Progress) -> dict[str, object]:
    """Three generations in one service against the sum of its nodes alone, Offline and Server, near and far."""
    count = args.accelerators or 8
    pools = [(accelerator, count) for accelerator in MIXED]
    found: dict[str, Figures] = {}
    with start_fleet(fleet_config(pools, MODEL_PROFILE, "offline", port=args.port), progress) as fleet:
        seconds = args.seconds or OFFLINE_S
        nodes = _pools(fleet)
        progress("Offline, each pool alone")
        alone = answer_all(fleet, nodes, seconds, progress, seed=args.seed)
        progress("Offline, all together")
        [found["offline"]] = answer_all(fleet, [fleet.replicas], seconds, progress, seed=args.seed + 100)
        progress(f"Offline, {FAR_POOL} {FAR_MS:g} ms away")
        with _one_pool_far(fleet) as far:
            [found["offline_far"]] = answer_all(fleet, [far], seconds, progress, seed=args.seed + 100)
    finite = sum(each["finite_tokens_per_s"] or 0.0 for each in alone)
    saturated = sum(each["saturated_tokens_per_s"] or 0.0 for each in alone)
    times = Times(args.warmup or 120.0, args.seconds or 120.0)
    with start_fleet(fleet_config(pools, MODEL_PROFILE, "server", port=args.port), progress) as fleet:
        progress("Server, each pool alone")
        singles = arrive_each(fleet, _pools(fleet), times, progress, seed=args.seed)
        rate = sum(map(queries_per_s, fleet.replicas))
        progress(f"Server, all together at {rate:,.1f} queries/s")
        found["server"] = arrive(fleet, fleet.replicas, rate, times, progress, seed=args.seed)
        progress(f"Server, {FAR_POOL} {FAR_MS:g} ms away")
        with _one_pool_far(fleet) as far:
            found["server_far"] = arrive(fleet, far, rate, times, progress, seed=args.seed)
    # The nodes' and the service's arrivals differ by chance, so each is taken as a share of what was offered to it.
    offered = sum(each["offered_tokens_per_s"] or 0.0 for each in singles)
    alone_share = sum(each["tokens_per_s"] or 0.0 for each in singles) / offered
    shares = {name: (found[name]["share_of_offered"] or 0.0) / alone_share for name in ("server", "server_far")}
    efficiency = {
        "offline": (found["offline"]["finite_tokens_per_s"] or 0.0) / finite,
        "offline_saturated": (found["offline"]["saturated_tokens_per_s"] or 0.0) / saturated,
        "offline_far": (found["offline_far"]["finite_tokens_per_s"] or 0.0) / finite,
        **shares,
    }
    published = {"offline": "95.5 %", "server": "94.0 %"}
    goals = [
        Goal(
            f"{name.replace('_', ', ')}, of the nodes alone",
            share,
            MIXED_GOAL,
            "%",
            note=f"published, hand-tuned: {published[name]}" if name in published else "",
        )
        for name, share in efficiency.items()
    ]
    for name in ("server", "server_far"):
        for key, limit in zip(("ttft_p99_ms", "tpot_p99_ms"), LIMITS_MS["server"], strict=True):
            goals.append(
                Goal(f"{name.replace('_', ', ')}: {key[:4].upper()} p99", found[name][key], limit, "ms", False)
            )
    print_goals(f"Mixed: {count} each of {', '.join(MIXED)}, {MODEL_PROFILE}, no weights", goals)
    print_latencies(found["server"])
    print_cpu(found["server"])
    return {
        "accelerators": 3 * count,
        **found["server"],
        "efficiency": min(efficiency["offline"], efficiency["server"]),
        "efficiencies": efficiency,
        "alone": {
            name: {"offline": finite_run, "server": server_run}
            for name, finite_run, server_run in zip(MIXED, alone, singles, strict=True)
        },
        "together": found,
        "far_pool": FAR_POOL,
        "far_ms_each_way": FAR_MS,
    }


def _pools(fleet: Fleet) -> list[list[ReplicaAddress]]:
    """The replicas of each accelerator, in the order of `MIXED`."""
    return [[replica for replica in fleet.replicas if replica.accelerator.endswith(name)] for name in MIXED]


@contextmanager
def _one_pool_far(fleet: Fleet) -> Generator[list[ReplicaAddress]]:
    """All replicas, those of one pool behind relays."""
    far = [replica for replica in fleet.replicas if replica.accelerator.endswith(FAR_POOL)]
    near = [replica for replica in fleet.replicas if replica not in far]
    with far_away(far, FAR_MS) as relayed:
        yield near + relayed
