"""Ray's autoscaler adds and ends nodes of this machine under a load that steps up and down: no request may notice.

    python benchmarks/autoscaling.py [--events 20 | --short | --kill] [--gateways 2] [--keep benchmarks/results]

A local cluster serves the default model and a simulated one. Clients hold streams of the OpenAI API open and check
that each ends with all its tokens. Step by step the load of one model rises or falls, and its nodes with it: the
actuator asks Ray's autoscaler (v2) for nodes, fills those that come, drains those that go. With --kill, Serve's
controller, a node, one gateway and all gateways are killed in the middle of a step: then streams are cut that a
killed gateway had begun to answer (`num_cut`), and no request fails of which nothing had been answered
(`num_failed`). Last line: JSON.
"""

import argparse
import contextlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from autoscaling_drive import ClientProcess, Event, Stage, run_stage
from kept_results import keep
from nfold.cluster.config import NfoldConfig
from nfold.cluster.controller.actuation import Actual
from nfold.cluster.processes import session_processes
from nfold.cluster.provenance import provenance
from nfold.cluster.service import api_url, start_service, stop_service

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


def stage(name: str, counts: dict[str, int], disturb: Callable[[Actual], tuple[str, str]] | None = None) -> Stage:
    return Stage(
        name,
        {MODELS[each]: STREAMS_PER_NODE[each] * count for each, count in counts.items()},
        dict(counts),
        {POOLS[each]: count for each, count in counts.items()},
        disturb,
    )


def killings() -> Iterator[Stage]:
    """Something dies in the middle of each step."""
    yield stage("add a node, kill Serve's controller", {COMPUTING: 1, SIMULATED: 2}, kill_serve_controller)
    yield stage("add a node, kill another node", {COMPUTING: 1, SIMULATED: 3}, kill_node)
    yield stage("end two nodes, kill Serve's controller", {COMPUTING: 1, SIMULATED: 1}, kill_serve_controller)
    yield stage("add a node, kill a gateway", {COMPUTING: 1, SIMULATED: 2}, kill_gateway)
    yield stage("end a node, kill all gateways", {COMPUTING: 1, SIMULATED: 1}, kill_gateways)


def kill_serve_controller(actual: Actual) -> tuple[str, str]:
    return _kill("ray::ServeController", "Serve's controller"), ""


def kill_gateway(actual: Actual) -> tuple[str, str]:
    return _kill("autoscaling:gateway", "a gateway", most=1), ""


def kill_gateways(actual: Actual) -> tuple[str, str]:
    return _kill("autoscaling:gateway", "all gateways"), ""


def kill_node(actual: Actual) -> tuple[str, str]:
    """The raylet of the youngest simulated node that serves; its workers die with it."""
    serving = {replica.node_id for replica in actual.replicas if replica.state == "running"}
    nodes = [node for node in actual.nodes if node.node_type == SIMULATED and node.node_id in serving]
    victim = max(nodes, key=lambda node: node.since_s).node_id
    return _kill(f"--node_id={victim}", "a node that serves", program="raylet"), victim


def _kill(word: str, name: str, program: str = "", most: int | None = None) -> str:
    """The processes of the cluster with this in their command line."""
    found: list[psutil.Process] = []
    for process in session_processes(int(os.environ["NFOLD_SUPERVISOR"])):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends just now
            if program in process.name() and word in " ".join(process.cmdline()):
                found.append(process)
    assert found, f"nothing runs that is {name}"
    for process in found[:most]:
        process.kill()
    return f"killed {name}, {len(found[:most])} of {len(found)}"


def measure(args: argparse.Namespace) -> dict[str, Any]:
    config = config_of(args.port, args.gateways)
    with tempfile.TemporaryDirectory() as directory:
        state = start_service(config, Path(directory), lambda text: print(f"  {text}", flush=True))
        try:
            assert state.local is not None
            os.environ["NFOLD_SUPERVISOR"] = str(state.local.supervisor_pid)
            with ClientProcess(api_url(config), args.tokens) as clients:
                return drive(config, args, clients)
        finally:
            stop_service(state, Path(directory), lambda text: None)


def drive(config: NfoldConfig, args: argparse.Namespace, clients: ClientProcess) -> dict[str, Any]:
    from nfold.cluster.controller.actuator import RayActuator, find_node_types

    actuator = RayActuator(config, find_node_types(config))
    events: list[Event] = []
    begin = time.monotonic()
    plan = (
        killings()
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
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--gateways", type=int, help="1, with --kill 2")
    parser.add_argument("--steps", action="store_true", help="show what was seen at each tick")
    parser.add_argument("--tokens", type=int, default=200, help="of the longest answers")
    parser.add_argument("--keep", type=Path, help="a folder: also write the last line there, as kept results are")
    parser.add_argument("--port", type=int, default=18700)
    args = parser.parse_args()
    args.gateways = args.gateways or (2 if args.kill else 1)
    line = {"benchmark": "autoscaling", **measure(args), "provenance": provenance().model_dump()}
    keep(f"autoscaling{'-kill' if args.kill else ''}", line, args.keep)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
