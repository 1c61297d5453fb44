"""`nfold history`: what the controller decided and predicted, and what came of it. Needs a connected process."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from .costs import costs_of, in_words
from .decision import Action, Verdict
from .history import read
from .records import Decided, Hole, Score
from .scoring import REACHED, Calibration, calibrate
from .wording import nodes_of

INDENT = " " * 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The latest of a history.

    Attributes:
        decided: decisions, oldest first.
        scores: of them.
        calibration: over all that is kept.
    """

    decided: tuple[Decided, ...]
    scores: tuple[Score, ...]
    holes: tuple[Hole, ...]
    calibration: Calibration


def tell(directory: Path, last: int, every: bool) -> Told:
    """Out of a directory.

    Args:
        last: how many decisions.
        every: also those that changed nothing.
    """
    decided: list[Decided] = []
    scores: list[Score] = []
    holes: dict[float, Hole] = {}
    for entry in read(directory):
        if entry.decided is not None and (every or entry.decided.decision.changes):
            decided = [*decided[1 - last :], entry.decided] if last > 1 else [entry.decided]
        scores += entry.scores
        if entry.hole is not None:
            holes[entry.hole.from_s] = entry.hole
    numbers = {one.decision.number for one in decided}
    return Told(
        decided=tuple(decided),
        scores=tuple(score for score in scores if score.decision in numbers),
        holes=tuple(holes.values())[-last:],
        calibration=calibrate(scores),
    )


def tell_head(directory: Path, last: int, every: bool) -> Told:
    """The same, read on the cluster's head, where the controller keeps it. Needs a connected process."""
    import ray

    from ..observer_app import HEAD

    def read_there() -> bytes:
        return msgspec.json.encode(tell(directory, last, every))

    remote = ray.remote(num_cpus=0, resources=HEAD)(read_there)
    return msgspec.json.decode(ray.get(remote.remote()), type=Told)


def render(told: Told) -> RenderableType:
    """For the terminal; without colour it reads the same."""
    if not told.decided:
        return Text("the controller has decided nothing yet")
    scores = {(score.decision, score.model): score for score in told.scores}
    lines: list[Text] = []
    for decided in told.decided:
        head = f"{decided.decision.number:>5}  {_clock(decided.decision.time_s)}  "
        for verdict in decided.decision.verdicts:
            score = scores.get((decided.decision.number, verdict.model))
            lines += _verdict(head, verdict, score)
        for one in decided.decision.health:
            name = one.replica_id or f"node {one.node_id}"
            lines += [Text(f"{head}{one.model}: {one.remedy} {name}", style="bold"), Text(f"{INDENT}{one.reason}")]
    holes = [
        Text(f"nobody looked from {_clock(hole.from_s)} to {_clock(hole.to_s)}: nothing is known of that time")
        for hole in told.holes
    ]
    return Group(*lines, *holes, *_costs(told.decided[-1]), Text(_calibration(told.calibration)))


def _verdict(head: str, verdict: Verdict, score: Score | None) -> list[Text]:
    lines = [
        Text(f"{head}{verdict.model}: {verdict.action}, {nodes_of(verdict.after)}", style="bold"),
        Text(f"{INDENT}{verdict.reason}"),
    ]
    predicted = verdict.prediction
    if verdict.action is Action.HOLD or predicted is None:
        return lines
    text = f"predicted {predicted.tokens_per_s:,.0f} tokens/s, efficiency {predicted.efficiency:.1%}"
    if score is None:
        text += "; not scored yet"
    elif score.outcome != REACHED:
        text += f"; {score.outcome}"
    else:
        efficiency = "not saturated" if score.efficiency is None else f"efficiency {score.efficiency:.1%}"
        text += f"; measured {score.tokens_per_s or 0.0:,.0f}, {efficiency}"
    return [*lines, Text(INDENT + text)]


def _costs(decided: Decided) -> Sequence[Text]:
    costs = costs_of(decided.snapshot, decided.read_settings())
    if costs is None:
        return []
    number = decided.decision.number
    return [
        Text(f"decision {number}: {in_words(model, costs.currency, cost.parts, cost.parts_per_million)}")
        for model, cost in costs.models.items()
    ]


def _calibration(found: Calibration) -> str:
    if not found.num_tokens:
        return "no prediction has been scored yet"
    text = f"predictions of tokens/s: {found.num_tokens} scored, off by {found.tokens_error:.1%}"
    text += f"; nodes served {abs(found.late_s):.0f} s {'later' if found.late_s >= 0 else 'sooner'} than predicted"
    if found.num_efficiency:
        text += (
            f"; of efficiency: {found.num_efficiency} scored, off by {found.efficiency_error:.2f} points"
            f" ({found.efficiency_bias:+.2f} on the mean)"
        )
    return text


def _clock(time_s: float) -> str:
    return datetime.datetime.fromtimestamp(time_s).strftime("%m-%d %H:%M:%S")
