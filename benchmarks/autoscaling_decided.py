"""The controller decides: the load steps up and down, and nodes of this machine come and go by its decisions.

    python benchmarks/autoscaling_decided.py [--cycles 5] [--keep benchmarks/results]
    python benchmarks/autoscaling_decided.py --computed --cycles 10

A local cluster serves a simulated model on up to three nodes, or with --computed the embedded one on up to two, a
core each; the baseline of one node is measured first. In each cycle clients ask for more than the nodes bring,
until all nodes are there that may be, and then for next to nothing, until one is left; each time until the decision
has its score. Each decision is listed with its reason, prediction and score, each node that comes or goes with the
time.
Last line: JSON.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoscaling_decisions import ACCELERATOR, ENGINE, all_scored, await_nodes, decisions, num_flaps
from autoscaling_drive import ClientProcess
from kept_results import keep
from local_service import serving
from nfold.cluster.config import NfoldConfig
from nfold.cluster.load import LoadSettings
from nfold.cluster.provenance import provenance
from nfold.cluster.service import api_url

# Of the requests that keep one node busy: too many for the batches of all nodes but one.
TOO_MANY_FOR_FEWER = 2.2


@dataclass(frozen=True)
class Served:
    """What is served where, as the YAML has it.

    Attributes:
        node_type: of which up to `most` come and go.
        local: nodes of this machine.
        model: with one pool of one replica.
    """

    node_type: str
    most: int
    local: dict[str, Any]
    model: dict[str, Any]


SIMULATED = Served(
    node_type=f"simulated-{ACCELERATOR}-1",
    most=3,
    local={"simulated_nodes": [{"accelerator": ACCELERATOR, "accelerators": 1, "nodes": 1, "max_nodes": 3}]},
    model={
        "name": "big",
        "path": "simulated",
        "pools": [{"accelerator": ACCELERATOR, "num_replicas": 1}],
        "engine": ENGINE,
    },
)
COMPUTED = Served(
    node_type="cpu",
    most=2,
    local={"nodes": 1, "max_nodes": 2, "cores_per_node": 1},
    model={
        "name": "sums",
        "pools": [{"num_replicas": 1}],
        "engine": {"max_num_seqs": 16, "kv_cache_bytes": 32 << 20, "prefix_cache": False},
    },
)


def config_of(served: Served, port: int) -> NfoldConfig:
    scaling = {
        "max_nodes": served.most,
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
            "models": [served.model | {"max_queued_requests": 8192}],
            "controller": {"enabled": True, "tick_s": 1, "models": {served.model["name"]: scaling}},
            "cluster": {"local": served.local},
        }
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    served = COMPUTED if args.computed else SIMULATED
    config = config_of(served, args.port)
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        with serving(config, lambda text: print(f"  {text}", flush=True), home):
            from nfold.cluster.measuring import take_baseline

            settings = LoadSettings(warmup_s=3.0, window_s=8.0)
            baseline = take_baseline(
                config, home, served.model["name"], lambda text: None, repeats=1, settings=settings
            )
            told = f"{baseline.tokens_per_s:,.0f} tokens/s{'' if args.computed else ' (simulated)'}"
            print(f"  one node: {told} with {baseline.concurrency} requests", flush=True)
            with ClientProcess(api_url(config), args.tokens, "--whole") as clients:
                figures = drive(config, home, served, args, clients, baseline.concurrency)
            return figures | decisions(home, config.name)


def drive(
    config: NfoldConfig,
    home: Path,
    served: Served,
    args: argparse.Namespace,
    clients: ClientProcess,
    saturating: int,
) -> dict[str, Any]:
    from nfold.cluster.controller.actuator import RayActuator, find_node_types

    actuator = RayActuator(config, find_node_types(config))
    begin, moves = time.monotonic(), []

    def scored() -> bool:
        return all_scored(home, config.name)

    for _ in range(args.cycles):
        for streams, nodes in ((int(saturating * TOO_MANY_FOR_FEWER), served.most), (1, 1)):
            clients.want({served.model["name"]: streams})
            moves += await_nodes(actuator, served.node_type, nodes, nodes, begin, scored)
    counts = clients.end()
    return {
        "events": len(moves),
        "num_failed": counts["num_failed"],
        "num_cut": counts["num_cut"],
        "flaps": num_flaps(moves),
        "num_done": counts["num_done"],
        "num_tokens": counts["num_tokens"],
        "first_error": counts["first_error"] or counts["first_cut"],
        "seconds": time.monotonic() - begin,
        "list": moves,
        "simulated": not args.computed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=5, help="four nodes come and go in each, two with --computed")
    parser.add_argument("--computed", action="store_true", help="the embedded model, not a simulated one")
    parser.add_argument("--tokens", type=int, default=100, help="of the longest answers")
    parser.add_argument("--keep", type=Path, help="a folder: also write the last line there, as kept results are")
    parser.add_argument("--port", type=int, default=18720)
    args = parser.parse_args()
    line = {"benchmark": "autoscaling_decided", **measure(args), "provenance": provenance().model_dump()}
    keep("autoscaling_decided" + "-computed" * args.computed, line, args.keep)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
