"""The controller decides: the load steps up and down, and nodes of this machine come and go by its decisions.

    python benchmarks/autoscaling_decided.py [--cycles 5]

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

from autoscaling_drive import ClientProcess, ready_nodes
from nfold.cluster.config import NfoldConfig
from nfold.cluster.controller.actuation import Actuator
from nfold.cluster.load import LoadSettings
from nfold.cluster.service import api_url, start_service, stop_service
from nfold.models.errors import StateError

TYPE, MODEL = "simulated-MI300X-1", "big"
MOST = 3
# Of the requests that keep one node busy: more of them would take minutes to end when the load falls.
MORE_THAN_ONE_NODE = 1.5
PATIENCE_S = 600.0


def config_of(port: int) -> NfoldConfig:
    nodes = {"accelerator": "MI300X", "accelerators": 1, "nodes": 1, "max_nodes": MOST}
    scaling = {
        "max_nodes": MOST,
        "idle_before_removal_s": 10,
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
                    "pools": [{"accelerator": "MI300X", "num_replicas": 1}],
                    "engine": {"engine": "simulated", "simulated": {"scenario": "interactive"}},
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
        for streams, nodes in ((int(saturating * MORE_THAN_ONE_NODE), MOST), (2, 1)):
            clients.want({MODEL: streams})
            moves += await_nodes(actuator, nodes, begin)
    counts = clients.end()
    return {
        "events": len(moves),
        "num_failed": counts["num_failed"],
        "num_cut": counts["num_cut"],
        "flaps": sum((move["nodes"] - move["before"]) * (move["wanted"] - move["before"]) < 0 for move in moves),
        "num_done": counts["num_done"],
        "num_tokens": counts["num_tokens"],
        "first_error": counts["first_error"],
        "seconds": time.monotonic() - begin,
        "list": moves,
        "simulated": True,
    }


def await_nodes(actuator: Actuator, nodes: int, begin_s: float) -> list[dict[str, Any]]:
    """Until so many are ready; each change in between.

    Raises:
        StateError: they are not, after long.
    """
    moves: list[dict[str, Any]] = []
    give_up_at, before = time.monotonic() + PATIENCE_S, None
    while before != nodes:
        if time.monotonic() > give_up_at:
            raise StateError(f"{before} instead of {nodes} nodes after {PATIENCE_S:.0f} s")
        here = ready_nodes(actuator.observe())[TYPE]
        if before is not None and here != before:
            at_s = round(time.monotonic() - begin_s, 1)
            moves.append({"at_s": at_s, "before": before, "nodes": here, "wanted": nodes})
            print(f"  {at_s:6.1f} s: {before} -> {here} nodes", flush=True)
        before = here
        time.sleep(0.5)
    return moves


def decisions(home: Path, service: str) -> dict[str, Any]:
    """What the controller kept, shown, and counted."""
    from nfold.cluster.controller.app import history_directory
    from nfold.cluster.controller.decision import Action
    from nfold.cluster.controller.history import read

    num_changes, errors = 0, list[float]()
    for entry in read(history_directory(home, service)):
        for verdict in entry.decided.decision.verdicts if entry.decided else ():
            number = entry.decided.decision.number if entry.decided else 0
            predicted = f"; predicts {verdict.prediction.tokens_per_s:,.0f} tokens/s" if verdict.prediction else ""
            num_changes += verdict.action is not Action.HOLD
            print(f"  decision {number}: {verdict.action}: {verdict.reason}{predicted}", flush=True)
        for score in entry.scores:
            measured = "" if score.tokens_per_s is None else f", {score.tokens_per_s:,.0f} tokens/s measured"
            print(f"  decision {score.decision} {score.outcome}{measured}", flush=True)
            if score.efficiency_error is not None:
                errors.append(abs(score.efficiency_error))
    mean = 100 * sum(errors) / len(errors) if errors else None
    return {"decisions": num_changes, "scored": len(errors), "mean_abs_error_points": mean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=5, help="four nodes come and go in each")
    parser.add_argument("--tokens", type=int, default=100, help="of the longest answers")
    parser.add_argument("--port", type=int, default=18720)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
