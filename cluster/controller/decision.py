"""What the policy decides, as frozen data that JSON can hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from .actuation import Target
from .prediction import Prediction


class Action(StrEnum):
    ADD = "add"
    REMOVE = "remove"
    HOLD = "hold"


class Cause(StrEnum):
    """Why, in a word; `Verdict.reason` says it with its figures."""

    WORK = "work"  # more is asked for than nodes bring
    BOUNDS = "bounds"  # min_nodes or max_nodes
    SLO = "slo"  # clients wait longer than promised
    IDLE = "idle"  # fewer nodes do
    ENOUGH = "enough"
    STARTING = "starting"  # what was asked for is on its way
    PASSING = "passing"  # the SLO is missed, not for long
    COOLING = "cooling"  # fewer nodes would do, but not for long enough yet
    FLOOR = "floor"  # another node would bring too little
    FAILING = "failing"  # nodes of every type that would help do not come
    SLO_UNREACHABLE = "slo unreachable"  # by any number of nodes
    UNPLACEABLE = "unplaceable"  # replicas fit on no node
    NO_BASELINE = "no baseline"  # nothing is known of what a node brings
    FIXED = "fixed"  # nothing adds nodes here


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is decided of one model.

    Attributes:
        before, after: by node type, how many it is to have.
        reason: in words, with figures.
        prediction: of `after`, for the work expected; None where nothing is known.
        without: of `before`, likewise.
        marginal: share of its baseline that one more node than `after` would bring; None where not known.
        eaten_by: the ledger column that would take most of the rest; empty where not known.
        done_at_s: when `after` should serve, Unix time.
    """

    model: str
    action: Action
    cause: Cause
    before: Mapping[str, int]
    after: Mapping[str, int]
    reason: str
    prediction: Prediction | None = None
    without: Prediction | None = None
    marginal: float | None = None
    eaten_by: str = ""
    done_at_s: float = 0.0


class Remedy(StrEnum):
    QUARANTINE = "quarantine"  # out of routing
    RELEASE = "release"  # back into routing
    REPLACE = "replace"  # end it, Serve starts another
    DRAIN_NODE = "drain node"  # all replicas on it are sick
    WAIT = "wait"  # too many are out already


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthVerdict:
    """What is decided of one replica, or of a node."""

    remedy: Remedy
    model: str
    replica_id: str
    node_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """All that is decided at one moment.

    Attributes:
        quarantined: ids of the replicas that are out of routing from now on.
    """

    number: int
    time_s: float
    verdicts: tuple[Verdict, ...]
    health: tuple[HealthVerdict, ...]
    target: Target
    quarantined: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Something is to be done that was not before."""
        remedies = any(one.remedy is not Remedy.WAIT for one in self.health)
        return remedies or any(verdict.action is not Action.HOLD for verdict in self.verdicts)
