"""What came of decisions, against what they predicted; and how good predictions have been. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .actuation import NodeState
from .decision import Action, Decision
from .records import Pending, Score
from .snapshot import Memory, Snapshot

REACHED, SUPERSEDED = "reached", "superseded"


def open_scores(decision: Decision, pending: Sequence[Pending]) -> tuple[tuple[Pending, ...], list[Score]]:
    """What waits to be scored after `decision`, and the scores of what it supersedes."""
    changes = [
        Pending(
            decision=decision.number,
            model=verdict.model,
            predicted=verdict.prediction,
            done_at_s=verdict.done_at_s,
        )
        for verdict in decision.verdicts
        if verdict.action is not Action.HOLD and verdict.prediction is not None
    ]
    changed = {change.model for change in changes}
    scores = [
        Score(
            decision=old.decision,
            model=old.model,
            outcome=SUPERSEDED,
            time_s=decision.time_s,
            predicted=old.predicted,
            hole_s=old.hole_s,
        )
        for old in pending
        if old.model in changed
    ]
    return (*(old for old in pending if old.model not in changed), *changes), scores


def close_scores(
    snapshot: Snapshot, memory: Memory, pending: Sequence[Pending]
) -> tuple[tuple[Pending, ...], list[Score]]:
    """What still waits, and the scores of what serves now for a whole window."""
    waiting: list[Pending] = []
    scores: list[Score] = []
    for one in pending:
        if not _serves(snapshot, memory, one.model):
            waiting.append(replace(one, settled_s=0.0))
            continue
        settled_s = one.settled_s or snapshot.time_s
        window = snapshot.load(one.model).window
        if window is None or snapshot.time_s - window.window_s < settled_s:
            waiting.append(replace(one, settled_s=settled_s))
            continue
        scores.append(
            Score(
                decision=one.decision,
                model=one.model,
                outcome=REACHED,
                time_s=snapshot.time_s,
                predicted=one.predicted,
                tokens_per_s=window.measured,
                efficiency=window.efficiency,
                late_s=settled_s - one.done_at_s,
                hole_s=one.hole_s,
            )
        )
    return tuple(waiting), scores


def _serves(snapshot: Snapshot, memory: Memory, model: str) -> bool:
    """All nodes that the model is to have are ready, and its replicas neither come nor go."""
    actual = snapshot.actual
    nodes = memory.models[model].nodes if model in memory.models else {}
    if any(actual.count(kind, NodeState.READY) < count for kind, count in nodes.items()):
        return False
    own = {offer.pool for offer in snapshot.offers.get(model, ())}
    kinds = {offer.node_type for offer in snapshot.offers.get(model, ())}
    if any(node.state is NodeState.DRAINING and node.node_type in kinds for node in actual.nodes):
        return False
    return not any(pool.pool in own and (pool.starting or pool.draining) for pool in actual.pools)


@dataclass(frozen=True, slots=True)
class Calibration:
    """How good predictions have been.

    Attributes:
        num_efficiency: changes after which the nodes were saturated.
        efficiency_bias, efficiency_error: predicted less measured, mean and mean absolute, in percentage points.
        num_tokens: changes that were reached.
        tokens_error: mean absolute error of tokens/s, as a share of what was measured.
        late_s: how much later than predicted changes served, mean.
    """

    num_efficiency: int
    efficiency_bias: float
    efficiency_error: float
    num_tokens: int
    tokens_error: float
    late_s: float


def calibrate(scores: Iterable[Score]) -> Calibration:
    """Over all changes that were reached."""
    reached = [score for score in scores if score.outcome == REACHED and score.tokens_per_s is not None]
    points = [100 * error for score in reached if (error := score.efficiency_error) is not None]
    shares = [
        abs(score.predicted.tokens_per_s - score.tokens_per_s) / score.tokens_per_s
        for score in reached
        if score.tokens_per_s
    ]
    return Calibration(
        num_efficiency=len(points),
        efficiency_bias=_mean(points),
        efficiency_error=_mean([abs(point) for point in points]),
        num_tokens=len(shares),
        tokens_error=_mean(shares),
        late_s=_mean([score.late_s for score in reached]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
