"""The controller decides: the load steps up and down, and nodes of this machine come and go by its decisions.

    python benchmarks/autoscaling_decided.py [--cycles 5] [--keep benchmarks/results]

A local cluster serves a simulated model; the baseline of one node is measured first. In each cycle clients ask for
more than the nodes bring, until all nodes are there that may be, and then for next to nothing, until one is left.
Each decision is listed with its reason, prediction and score, each node that comes or goes with the time.
Last line: JSON.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from autoscaling_decisions import ACCELERATOR, ENGINE, await_nodes, decisions, num_flaps
from autoscaling_drive import ClientProcess
from kept_results import keep
from nfold.cluster.config import NfoldConfig
from nfold.cluster.load import LoadSettings
from nfold.cluster.provenance import provenance
from nfold.cluster.service import api_url, start_service, stop_service

TYPE, MODEL = f"simulated-{ACCELERATOR}-1", "big"
MOST = 3
# Of the requests that keep one node busy: too many for the batches of all nodes but one.
TOO_MANY_FOR_FEWER = 2.2


def config_of(port: int) -> NfoldConfig:
    nodes = {"accelerator": ACCELERATOR, "accelerators": 1, "nodes": 1, "max_nodes": MOST}
    scaling = {
        "max_nodes": MOST,
        "idle_before_removal_s": 30,  # longer than the waves in which clients that began together ask
        "provision_s": 10,
        "load_s": 10,
        "backlog_within_s": 30,
        "give_up_s": 60,
    }
    return NfoldConfig.model_validate(
        {
            "name": "decided",
            "http": {"port": port},
            "metrics": {"port": port + 1},
            "drain_timeout_s": 60,
            "models": [
                {
                    "name": MODEL,
                    "path": "simulated",
                    "pools": [{"accelerator": ACCELERATOR, "num_replicas": 1}],
                    "engine": ENGINE,
                    "max_queued_requests": 8192,
                }
            ],
            "controller": {"enabled": True, "tick_s": 1, "models": {MODEL: scaling}},
            "cluster": {"local": {"simulated_nodes": [nodes]}},
        }
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    config = config_of(args.port)
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        state = start_service(config, home, lambda text: print(f"  {text}", flush=True))
        try:
            from nfold.cluster.measuring import take_baseline

            settings = LoadSettings(warmup_s=3.0, window_s=8.0)
            baseline = take_baseline(config, home, MODEL, lambda text: None, repeats=1, settings=settings)
            told = f"{baseline.tokens_per_s:,.0f} tokens/s (simulated) with {baseline.concurrency} requests"
            print(f"  one node: {told}", flush=True)
            with ClientProcess(api_url(config), args.tokens, "--whole") as clients:
                figures = drive(config, args, clients, baseline.concurrency)
            return figures | decisions(home, config.name)
        finally:
            stop_service(state, home, lambda text: None)


def drive(config: NfoldConfig, args: argparse.Namespace, clients: ClientProcess, saturating: int) -> dict[str, Any]:
    from nfold.cluster.controller.actuator import RayActuator, find_node_types

    actuator = RayActuator(config, find_node_types(config))
    begin, moves = time.monotonic(), []
    for _ in range(args.cycles):
        for streams, nodes in ((int(saturating * TOO_MANY_FOR_FEWER), MOST), (2, 1)):
            clients.want({MODEL: streams})
            moves += await_nodes(actuator, TYPE, nodes, nodes, begin, args.hold)
    counts = clients.end()
    return {
        "events": len(moves),
        "num_failed": counts["num_failed"],
        "num_cut": counts["num_cut"],
        "flaps": num_flaps(moves),
        "num_done": counts["num_done"],
        "num_tokens": counts["num_tokens"],
        "first_error": counts["first_error"],
        "seconds": time.monotonic() - begin,
        "list": moves,
        "simulated": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=5, help="four nodes come and go in each")
    parser.add_argument("--tokens", type=int, default=100, help="of the longest answers")
    parser.add_argument("--hold", type=float, default=75.0, help="seconds at each load, for the scores")
    parser.add_argument("--keep", type=Path, help="a folder: also write the last line there, as kept results are")
    parser.add_argument("--port", type=int, default=18720)
    args = parser.parse_args()
    line = {"benchmark": "autoscaling_decided", **measure(args), "provenance": provenance().model_dump()}
    keep("autoscaling_decided", line, args.keep)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
