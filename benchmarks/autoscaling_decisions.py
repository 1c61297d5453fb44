"""What `autoscaling_decided.py` and `listed_hosts.py` share: to watch what the controller does, and to show why."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autoscaling_drive import ready_nodes
from nfold.cluster.controller.actuation import Actuator
from nfold.models.errors import StateError

PATIENCE_S = 600.0
# Few slots, so that an accelerator is soon full and soon empty again, and steps so slow that this machine's HTTP
# clients keep up with several.
ACCELERATOR = "H200"
ENGINE = {
    "engine": "simulated",
    "simulated": {
        "model_profile": "gpt-oss-120b",
        "scenario": "offline",
        "faults": [{"kind": "slow", "percent": 200}],
    },
}


def await_nodes(
    actuator: Actuator,
    node_type: str,
    nodes: int,
    replicas: int,
    begin_s: float,
    ended: Callable[[], bool] = lambda: True,
) -> list[dict[str, Any]]:
    """Until so many nodes of a type are ready, and so many replicas serve and no others drain; and then until
    `ended`.

    Returns:
        Each change of the number of nodes.

    Raises:
        StateError: it takes too long.
    """
    moves: list[dict[str, Any]] = []
    give_up_at, before, reached = time.monotonic() + PATIENCE_S, None, False
    while True:
        actual = actuator.observe()
        here = ready_nodes(actual)[node_type]
        serving = sum(pool.running for pool in actual.pools)
        if before is not None and here != before:
            at_s = round(time.monotonic() - begin_s, 1)
            moves.append({"at_s": at_s, "before": before, "nodes": here, "wanted": nodes})
            print(f"  {at_s:6.1f} s: {before} -> {here} nodes", flush=True)
        before = here
        reached |= (here, serving) == (nodes, replicas) and not any(pool.draining for pool in actual.pools)
        if reached and ended():
            return moves
        if time.monotonic() > give_up_at:
            raise StateError(
                f"{here} nodes and {serving} replicas instead of {nodes} and {replicas} after {PATIENCE_S:.0f} s"
            )
        time.sleep(0.5)


def all_scored(home: Path, service: str) -> bool:
    """Whether the controller knows what came of each of its changes."""
    return not _unscored(home, service)


def _unscored(home: Path, service: str) -> set[int]:
    from nfold.cluster.controller.app import history_directory
    from nfold.cluster.controller.decision import Action
    from nfold.cluster.controller.history import read

    unscored: set[int] = set()
    for entry in read(history_directory(home, service)):
        if entry.decided and any(v.action is not Action.HOLD for v in entry.decided.decision.verdicts):
            unscored.add(entry.decided.decision.number)
        unscored -= {score.decision for score in entry.scores}
    return unscored


def num_flaps(moves: Sequence[dict[str, Any]]) -> int:
    """Nodes that came or went although that led away from what the load calls for."""
    return sum((move["nodes"] - move["before"]) * (move["wanted"] - move["before"]) < 0 for move in moves)


def decisions(home: Path, service: str) -> dict[str, Any]:
    """What the controller kept, shown; its changes, each with what came of it; and how good predictions were."""
    from nfold.cluster.controller.app import history_directory
    from nfold.cluster.controller.decision import Action
    from nfold.cluster.controller.history import read

    changes: dict[int, dict[str, Any]] = {}
    errors = list[float]()
    for entry in read(history_directory(home, service)):
        for verdict in entry.decided.decision.verdicts if entry.decided else ():
            number = entry.decided.decision.number if entry.decided else 0
            predicted = None if verdict.prediction is None else verdict.prediction.tokens_per_s
            told = "" if predicted is None else f"; predicts {predicted:,.0f} tokens/s"
            print(f"  decision {number}: {verdict.action}: {verdict.reason}{told}", flush=True)
            if verdict.action is not Action.HOLD:
                changes[number] = {"action": verdict.action, "reason": verdict.reason, "predicted": predicted}
        for score in entry.scores:
            measured = "" if score.tokens_per_s is None else f", {score.tokens_per_s:,.0f} tokens/s measured"
            print(f"  decision {score.decision} {score.outcome}{measured}", flush=True)
            changes[score.decision] |= {"outcome": score.outcome, "measured": score.tokens_per_s}
            if score.efficiency_error is not None:
                errors.append(abs(score.efficiency_error))
    return {
        "decisions": len(changes),
        "scored": sum(change.get("measured") is not None for change in changes.values()),
        "with_efficiency": len(errors),
        "mean_abs_error_points": 100 * sum(errors) / len(errors) if errors else None,
        "changes": changes,
    }
