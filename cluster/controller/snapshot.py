"""All that a decision may depend on, as frozen data that JSON can hold: the world now, and what is remembered."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .actuation import Actual


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """A point of a baseline's step-time curve: seconds of a step that decodes for `batch` requests."""

    batch: float
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one node of a type is to a model: a whole node, filled with replicas of one pool.

    Attributes:
        num_replicas: that fill the node, as Serve counts them; 0 when not even one fits.
        misfit: why none fits, in words; empty otherwise.
        tokens_per_s: of the filled node at saturation, its baseline; None before it was measured.
        num_engines: on the node.
        full_batch: requests of an engine when the baseline was measured.
        step_times: of an engine, by growing batch; empty when not measured.
        first_token_s: the least time to a first token; None when not known.
    """

    node_type: str
    pool: str
    num_replicas: int
    misfit: str = ""
    tokens_per_s: float | None
    num_engines: int = 1
    full_batch: float = 1.0
    step_times: tuple[StepTime, ...] = ()
    first_token_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The loss ledger of one model over the latest window, in output tokens/s.

    Attributes:
        losses: by column; they sum to baseline - measured.
        saturated: there was as much work all along as when the baselines were measured.
    """

    window_s: float
    baseline: float
    measured: float
    losses: Mapping[str, float]
    saturated: bool

    @property
    def efficiency(self) -> float | None:
        """None unless saturated."""
        return self.measured / self.baseline if self.saturated and self.baseline > 0.0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOutput:
    """One node's part of a model over the latest window.

    Attributes:
        baseline, measured: output tokens/s.
    """

    node_id: str
    node_type: str
    baseline: float
    measured: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one model has to do, and how it does.

    Attributes:
        num_queued: requests that wait, in routers or engines.
        num_in_flight: requests that engines work on.
        queued_tokens: output tokens that those waiting are expected to want.
        queue_age_s: how long those waiting wait, by Little's law.
        arriving_tokens_per_s: output tokens that the requests of the latest window are expected to want, refused
            ones too, per second.
        kv_use: share of the KV cache that is taken, of the fullest pool.
        ttft_attained, tpot_attained: share of the window's requests within the SLO; None when none ended or none is
            promised.
        window: None before there is a baseline for each replica.
        nodes: those that the model has.
    """

    model: str
    num_queued: int = 0
    num_in_flight: int = 0
    queued_tokens: float = 0.0
    queue_age_s: float = 0.0
    arriving_tokens_per_s: float = 0.0
    kv_use: float = 0.0
    ttft_attained: float | None = None
    tpot_attained: float | None = None
    window: Window | None = None
    nodes: tuple[NodeOutput, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSigns:
    """What tells whether a replica is well.

    Attributes:
        num_in_flight: requests that it holds.
        silent_s: since it last brought a token or had no request to bring one for.
        idle_s: since it last had a request; 0 while it has.
        speed: of its baseline, while it works: 1 is as measured; None when not known.
        probe: `passed`, `failed` or empty when none ended yet.
        probe_age_s: since then.
        reason: of a failed probe.
        state: as routers see it: `ready`, `quarantined`, `draining`, `lost`, ...
    """

    replica_id: str
    model: str
    pool: str
    node_id: str
    num_in_flight: int = 0
    silent_s: float = 0.0
    idle_s: float = 0.0
    speed: float | None = None
    probe: str = ""
    probe_age_s: float = 0.0
    reason: str = ""
    state: str = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The world at one moment.

    Attributes:
        time_s: Unix time.
        loads: one per model.
        offers: by model.
        replicas: all that routers know.
    """

    time_s: float
    actual: Actual
    loads: tuple[Load, ...]
    offers: Mapping[str, tuple[Offer, ...]]
    replicas: tuple[ReplicaSigns, ...] = ()

    def load(self, model: str) -> Load:
        """Nothing to do, if nothing is known of it."""
        return next((load for load in self.loads if load.model == model), Load(model=model))


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandSample:
    """Output tokens/s that a model was asked for."""

    time_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A saturated window: what the predictions learn from.

    Attributes:
        baseline: tokens/s, the sum over all nodes.
        losses: by column, as shares of the baseline; they sum to 1 - efficiency.
        typical: efficiency of the node in the middle.
    """

    time_s: float
    num_nodes: int
    baseline: float
    efficiency: float
    typical: float
    losses: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMemory:
    """What is remembered of one model.

    Attributes:
        nodes: by node type, how many it is to have.
        demand: the latest hours, oldest first.
        seen: the latest saturated window of each number of nodes, by that number.
        added_s, removed_s: when nodes were last added and removed, Unix time; 0 for never.
        patience: factor on `idle_before_removal_s`; doubles when what was removed is wanted back.
        missed_since_s: since when the SLO is missed, and not for a queue that is being worked off; 0 if it is not.
        slo_tries: nodes added for the SLO's sake since it was last kept.
        slo_attained: the attainment before the first of these.
    """

    nodes: Mapping[str, int]
    demand: tuple[DemandSample, ...] = ()
    seen: Mapping[int, Seen] = field(default_factory=dict[int, Seen])
    added_s: float = 0.0
    removed_s: float = 0.0
    patience: float = 1.0
    missed_since_s: float = 0.0
    slo_tries: int = 0
    slo_attained: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFailure:
    """A node that did not come, or died."""

    node_id: str
    node_type: str
    time_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTimes:
    """How long starts take: means of what was measured, newer ones counting more.

    Attributes:
        provision_s: from asking for a node to Ray placing on it, by node type.
        load_s: from then to its replicas serving, by pool.
        asked_s: when nodes were asked for that are not there, oldest first, by node type.
        ready_s: when nodes came whose replicas do not serve yet, oldest first, by pool.
        num_ready, num_running: nodes by type and replicas by pool at the last look.
    """

    provision_s: Mapping[str, float] = field(default_factory=dict[str, float])
    load_s: Mapping[str, float] = field(default_factory=dict[str, float])
    asked_s: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    ready_s: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    num_ready: Mapping[str, int] = field(default_factory=dict[str, int])
    num_running: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """A replica that is kept out of routing.

    Attributes:
        since_s: Unix time.
        replaced: it is being ended, for Serve to start another.
    """

    replica_id: str
    model: str
    node_id: str
    since_s: float
    reason: str
    replaced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """All that the controller remembers from one decision to the next.

    Attributes:
        decision: number of the latest decision.
        models: by name.
        slow_since_s: by replica id, since when it is too slow, Unix time.
        leaving: ids of nodes that are to go although their count is not too high.
    """

    decision: int = 0
    models: Mapping[str, ModelMemory] = field(default_factory=dict[str, ModelMemory])
    failures: tuple[NodeFailure, ...] = ()
    times: StartTimes = field(default_factory=StartTimes)
    quarantine: tuple[Quarantine, ...] = ()
    slow_since_s: Mapping[str, float] = field(default_factory=dict[str, float])
    leaving: tuple[str, ...] = ()
