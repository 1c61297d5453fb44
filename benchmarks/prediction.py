"""Does the controller know what nodes will bring? Efficiency predicted and actual, 1 -> 2 -> 4 -> 8 -> 11 nodes.

A fleet of simulated accelerators has more work than it can do. The controller itself, policy and history and all,
decides to grow, predicts, and keeps the prediction; then the fleet is run on with the new nodes, and the controller
scores what it measured. Four fleets: flawless; with a slow accelerator, a node that lacks one, and messages that
take time; with two generations; and with every second node a little slow. Some minutes.

    python benchmarks/prediction.py [--accelerators 2] [--directory DIR] [--keep benchmarks/results]

Everything here is simulated. Its last line is one line of JSON.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kept_results import keep
from nfold.cluster.controller.history import History, read
from nfold.cluster.controller.loop import Controller
from nfold.cluster.controller.records import Score
from nfold.cluster.controller.scoring import REACHED, calibrate
from nfold.cluster.controller.settings import ControllerSettings, ScalingSettings
from nfold.cluster.provenance import provenance
from nfold.cluster.recording import Recording, generated
from nfold.models.engine.simulated.lengths import OPENORCA
from prediction_fleet import MODEL, SETTLE_S, START_S, WINDOW_S, GrowingFleet, NodePlan, measure_yardstick

STAGES = (1, 2, 4, 8, 11)
NEW, OLD = "MI355X", "MI325X"
GOAL_POINTS = 1.0
STAGE_S = START_S + SETTLE_S + WINDOW_S

PLAIN = [NodePlan() for _ in range(STAGES[-1])]
FLAWED = [NodePlan(delay_s=0.02) for _ in range(STAGES[-1])]
FLAWED[0] = NodePlan(slowness={3: 1.2}, delay_s=0.02)
FLAWED[1] = NodePlan(num_broken=1, delay_s=0.02)
MIXED = [NodePlan(NEW if number < 3 else OLD) for number in range(STAGES[-1])]
UNEVEN = [
    NodePlan(slowness=dict.fromkeys(range(8), 1.0 if number % 2 == 0 else 1.02)) for number in range(STAGES[-1])
]
FLEETS = {"flawless": PLAIN, "flawed": FLAWED, "two generations": MIXED, "uneven": UNEVEN}


def grow(name: str, plans: Sequence[NodePlan], engines: int, recording: Recording, directory: Path) -> list[Score]:
    """Through all stages; each score was predicted before its nodes were started."""
    kinds = sorted({plan.accelerator for plan in plans})
    yardsticks = {kind: measure_yardstick(recording, kind, engines) for kind in kinds}
    fleet = GrowingFleet(recording, plans, yardsticks, engines)
    fleet.time_s = SETTLE_S + WINDOW_S
    fleet.run(fleet.time_s)
    for stage in STAGES[1:]:
        # A controller of its own for each stage: what it knows of the others it has from the history.
        scaling = ScalingSettings(
            min_nodes=0, max_nodes=stage, provision_s=START_S, load_s=1.0, backlog_within_s=1.0
        )
        settings = ControllerSettings(models={MODEL: scaling}, tick_s=STAGE_S)
        controller = Controller(fleet, fleet, settings, History(directory), lambda: fleet.time_s)
        decision = controller.tick()
        assert decision is not None
        assert sum(decision.target.nodes.values()) == stage, decision
        fleet.run(fleet.time_s + STAGE_S)
        fleet.time_s += STAGE_S - WINDOW_S
        controller.tick()
        fleet.time_s += WINDOW_S
        controller.tick()
        score = _scores(directory)[-1]
        print(_line(name, stage, score), flush=True)
    return _scores(directory)


def _scores(directory: Path) -> list[Score]:
    return [score for entry in read(directory) for score in entry.scores if score.outcome == REACHED]


def _line(name: str, stage: int, score: Score) -> str:
    assert score.efficiency is not None, "the window was not saturated"
    return (
        f"{name:16} {stage:3} nodes   predicted {score.predicted.efficiency:7.2%}  actual {score.efficiency:7.2%}"
        f"  {100 * (score.predicted.efficiency - score.efficiency):+5.2f} points"
        f"   {score.tokens_per_s or 0.0:12,.0f} tokens/s (simulated)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerators", type=int, default=2, help="per node")
    parser.add_argument("--fleets", nargs="*", choices=FLEETS, default=list(FLEETS))
    parser.add_argument("--directory", type=Path, help="where predictions and scores are kept")
    parser.add_argument("--keep", type=Path, help="a folder: also write the last line there, as kept results are")
    given = parser.parse_args()
    total_s = STAGE_S * len(STAGES)
    recording = generated(OPENORCA, round(total_s * STAGES[-1] * given.accelerators * 30), None, seed=0)
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as kept:
        every: list[Score] = []
        for name in given.fleets:
            directory = (given.directory or Path(kept)) / name.replace(" ", "-")
            scores = grow(name, FLEETS[name], given.accelerators, recording, directory)
            errors[name] = calibrate(scores).efficiency_error
            every += scores
    calibration = calibrate(every)
    print(f"mean absolute error {calibration.efficiency_error:.2f} points, goal {GOAL_POINTS:g}")
    figures = {
        "benchmark": "prediction",
        "simulated": True,
        "stages": STAGES,
        "accelerators_per_node": given.accelerators,
        "mean_abs_error_points": round(calibration.efficiency_error, 3),
        "bias_points": round(calibration.efficiency_bias, 3),
        "max_abs_error_points": round(max(100 * abs(score.efficiency_error or 0.0) for score in every), 3),
        "mean_abs_error_points_by_fleet": {name: round(error, 3) for name, error in errors.items()},
        "num_predictions": calibration.num_efficiency,
        "goal_points": GOAL_POINTS,
        "provenance": provenance().model_dump(mode="json"),
        "ok": calibration.efficiency_error <= GOAL_POINTS,
    }
    keep("prediction", figures, given.keep)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
