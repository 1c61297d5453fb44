"""Ray's autoscaler adds and ends nodes of this machine under a load that steps up and down: no request may notice.

    python benchmarks/autoscaling.py [--events 20 | --short | --kill [gateways]] [--keep benchmarks/results]

A local cluster serves the default model and a simulated one. Clients hold streams of the OpenAI API open and check
that each ends with all its tokens. Step by step the load of one model rises or falls, and its nodes with it: the
actuator asks Ray's autoscaler (v2) for nodes, fills those that come, drains those that go. With --kill, Serve's
controller, a node, one of two gateways and then both are killed in the middle of a step: streams are cut that a
killed gateway had begun to answer (`num_cut`), and no request fails of which nothing had been answered
(`num_failed`). Last line: JSON.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autoscaling_drive import ClientProcess, Disturb, Event, Stage, run_stage
from autoscaling_kills import Kills
from kept_results import keep
from local_service import serving
from nfold.cluster.config import NfoldConfig
from nfold.cluster.provenance import provenance
from nfold.cluster.service import api_url

COMPUTING, SIMULATED = "cpu", "simulated-MI300X-4"
POOLS = {COMPUTING: "sums--CPU", SIMULATED: "big--simulated-MI300X"}
MODELS = {COMPUTING: "sums", SIMULATED: "big"}
STREAMS_PER_NODE = {COMPUTING: 2, SIMULATED: 8}
PATH, SHORT = (SIMULATED, COMPUTING, SIMULATED), (SIMULATED,)
MOST = {COMPUTING: 2, SIMULATED: 3}


def config_of(port: int, gateways: int) -> NfoldConfig:
    simulated = {"engine": "simulated", "simulated": {"scenario": "interactive"}}
    nodes = {"accelerator": "MI300X", "accelerators": 4, "nodes": 1, "max_nodes": MOST[SIMULATED]}
    return NfoldConfig.model_validate(
        {
            "name": "autoscaling",
            "http": {"port": port, "gateways": gateways},
            "metrics": {"port": port + 1},
            "drain_timeout_s": 60,
            "models": [
                {
                    "name": "sums",
                    "engine": {"max_num_seqs": 8, "kv_cache_bytes": 16 << 20},
                    "pools": [{"num_replicas": 1}],
                },
                {
                    "name": "big",
                    "path": "simulated",
                    "pools": [{"accelerator": "MI300X", "num_replicas": 1}],
                    "engine": simulated,
                },
            ],
            "cluster": {
                "local": {
                    "nodes": 1,
                    "max_nodes": MOST[COMPUTING],
                    "cores_per_node": 1,
                    "simulated_nodes": [nodes],
                }
            },
        }
    )


def stages(path: Sequence[str]) -> Iterator[Stage]:
    """One node more in each, of these types in turn, then one fewer; without end."""
    counts = dict.fromkeys(POOLS, 1)
    for change in itertools.cycle([1, -1]):
        for node_type in path if change > 0 else reversed(path):
            counts[node_type] += change
            yield stage(f"{'add' if change > 0 else 'end'} a {node_type} node", counts)


def stage(name: str, counts: dict[str, int], disturb: Disturb | None = None) -> Stage:
    return Stage(
        name,
        {MODELS[each]: STREAMS_PER_NODE[each] * count for each, count in counts.items()},
        dict(counts),
        {POOLS[each]: count for each, count in counts.items()},
        disturb,
    )


def killings(what: str, kills: Kills) -> Iterator[Stage]:
    """Something dies in the middle of each step."""
    if what == "all":
        yield stage("add a node, kill Serve's controller", {COMPUTING: 1, SIMULATED: 2}, kills.serve_controller)
        yield stage("add a node, kill another node", {COMPUTING: 1, SIMULATED: 3}, kills.node)
        yield stage("end two nodes, kill Serve's controller", {COMPUTING: 1, SIMULATED: 1}, kills.serve_controller)
    yield stage("add a node, kill a gateway", {COMPUTING: 1, SIMULATED: 2}, kills.gateway)
    yield stage("end a node, kill both gateways", {COMPUTING: 1, SIMULATED: 1}, kills.both_gateways)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    config = config_of(args.port, gateways=2 if args.kill else 1)
    with serving(config, lambda text: print(f"  {text}", flush=True)) as state:
        assert state.local is not None
        kills = Kills(config.name, state.local.supervisor_pid, SIMULATED)
        with ClientProcess(api_url(config), args.tokens) as clients:
            return drive(config, args, clients, kills)


def drive(config: NfoldConfig, args: argparse.Namespace, clients: ClientProcess, kills: Kills) -> dict[str, Any]:
    from nfold.cluster.controller.actuator import RayActuator, find_node_types

    actuator = RayActuator(config, find_node_types(config))
    events: list[Event] = []
    begin = time.monotonic()
    plan = (
        killings(args.kill, kills)
        if args.kill
        else itertools.islice(stages(SHORT if args.short else PATH), 2 if args.short else args.events)
    )
    for number, each in enumerate(plan, 1):
        event = run_stage(actuator, clients, each, number)
        events.append(event)
        print(f"  {number:3d}  {event}", flush=True)
        if args.steps:
            print("\n".join(f"         {step}" for step in event.steps), flush=True)
    counts = clients.end()
    return {
        "events": len(events),
        "num_failed": counts["num_failed"],
        "num_cut": counts["num_cut"],
        "flaps": sum(event.flaps for event in events),
        "num_done": counts["num_done"],
        "num_tokens": counts["num_tokens"],
        "first_error": counts["first_error"],
        "first_cut": counts["first_cut"],
        "longest_event_s": max(event.seconds for event in events),
        "seconds": time.monotonic() - begin,
        "list": [
            {
                "name": event.name,
                "seconds": round(event.seconds, 1),
                "disturbed": event.disturbed,
                "num_failed": event.num_failed,
                "num_cut": event.num_cut,
                "num_open": event.num_open,
                "longest_wait_s": round(event.longest_wait_s, 1),
                "flaps": event.flaps,
            }
            for event in events
        ],
        "simulated": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--short", action="store_true", help="one node more, one fewer")
    parser.add_argument("--kill", nargs="?", const="all", choices=["all", "gateways"])
    parser.add_argument("--steps", action="store_true", help="show what was seen at each tick")
    parser.add_argument("--tokens", type=int, default=200, help="of the longest answers")
    parser.add_argument("--keep", type=Path, help="a folder: also write the last line there, as kept results are")
    parser.add_argument("--port", type=int, default=18700)
    args = parser.parse_args()
    line = {"benchmark": "autoscaling", **measure(args), "provenance": provenance().model_dump()}
    keep("autoscaling" + {None: "", "all": "-kill"}.get(args.kill, f"-kill-{args.kill}"), line, args.keep)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
