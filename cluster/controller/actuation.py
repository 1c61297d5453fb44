"""What the controller asks of whatever starts and ends nodes and replicas: a target to converge to, not commands.

            Target (whole, every tick)                 Actual (every tick)
    controller ───────────────────────────> actuator ───────────────────────> controller
                                              │  Ray's autoscaler: nodes
                                              │  Serve's external scaling: replicas

A target says what should be, completely, and is handed over again at every tick, so nothing is lost when the
controller or the actuator is killed between any two steps: whoever comes back says or hears the same target once
more. No deltas, for a delta that is said twice counts twice. An actuator keeps nothing that it could not read back
from Ray and Serve.

Growing:    ask for nodes ── they come ──> raise the replicas of their pools to what fits, up to the target
Shrinking:  lower replicas ── they drain ──> drain nodes that are over the target ── nothing runs there ──> end them

The actuator keeps this order by itself, over as many ticks as it takes; Serve picks the replicas that go, by
preference those that leave a node empty, and of the nodes over a target those in `leaving` go first, then the
emptiest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class NodeState(StrEnum):
    """
    requested ──> starting ──> ready ──> draining ──> (gone)
        └────────────┴───────────┴──────────┴───────> failed, with a reason
    """

    REQUESTED = "requested"  # asked for, nothing seen of it yet
    STARTING = "starting"  # the provider has it, Ray does not yet
    READY = "ready"  # Ray places on it
    DRAINING = "draining"  # Ray places nothing new on it
    FAILED = "failed"  # it did not come, or died; told for a while, `since_s` says since when


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """A kind of node that can be asked for.

    Attributes:
        name: of the type, as the provider knows it.
        resources: that Ray will find on one, such as `{"CPU": 128, "GPU": 8, "accelerator_type:...": 1}`.
        labels: Ray's node labels.
        accelerator: as pools name it (`CPU`, `AMD-Instinct-MI355X-OAM`, `simulated-MI355X`).
        num_accelerators: on one node.
        min_nodes, max_nodes: between which the provider lets it be.
    """

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    accelerator: str
    num_accelerators: int
    min_nodes: int = 0
    max_nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ActualNode:
    """One node that is there, comes, goes or failed.

    Attributes:
        node_id: Ray's; before Ray knows it, the provider's instance id, else a made-up one that stays the same.
        node_type: name of its NodeType; `unknown` for a node that no type describes.
        since_s: when it came into this state, Unix time.
        reason: why it failed or drains, in words; empty otherwise.
        num_accelerators: that work; fewer than its type's when some are broken.
        is_head: such a node is never drained.
    """

    node_id: str
    node_type: str
    state: NodeState
    since_s: float
    reason: str = ""
    num_accelerators: int = 0
    is_head: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ActualReplica:
    """One replica as Serve knows it.

    Attributes:
        replica_id: as in `ReplicaAddress.replica_id` where it has one yet, else Serve's.
        node_id: empty before it is placed.
        state: Serve's, in lower case: `starting`, `running`, `stopping`, ...
    """

    replica_id: str
    pool: str
    node_id: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActualPool:
    """One pool as Serve knows it.

    Attributes:
        pool: its name, as in `NfoldConfig.pools`.
        wanted: replicas that Serve aims at now.
        starting, running, draining: replicas by state; `starting` includes those that wait for placement.
        reason: Serve's words when replicas do not start; empty otherwise.
    """

    pool: str
    wanted: int
    starting: int
    running: int
    draining: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Actual:
    """What is, at one moment.

    Attributes:
        time_s: Unix time of looking.
        node_types: what can be asked for; empty where no autoscaler runs, and then nodes are as they are.
    """

    time_s: float
    node_types: tuple[NodeType, ...]
    nodes: tuple[ActualNode, ...]
    pools: tuple[ActualPool, ...]
    replicas: tuple[ActualReplica, ...] = ()

    def count(self, node_type: str, *states: NodeState) -> int:
        """Nodes of a type in any of these states."""
        return sum(node.node_type == node_type and node.state in states for node in self.nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What should be, completely. Types and pools that are not named keep what they have.

    Attributes:
        decision: number of the decision that it comes from; grows, also over restarts of the controller.
        nodes: by node type, how many should be ready in the end, those in `leaving` not counted.
        replicas: by pool, how many should serve in the end; fewer as long as not all fit.
        leaving: ids of nodes to be drained and ended whatever the counts (sick ones). Those that are gone already
            are no error.
        replace: ids of replicas to end at once, for which Serve starts others (sick ones). Gone ones likewise.
    """

    decision: int
    nodes: Mapping[str, int]
    replicas: Mapping[str, int]
    leaving: Sequence[str] = ()
    replace: Sequence[str] = ()


class Actuator(Protocol):
    """Starts and ends nodes and replicas. Called from one thread, once per tick, `observe` first."""

    def observe(self) -> Actual:
        """What is now. Within a second or two, with what can be learnt; no waiting for changes.

        Raises:
            StateError: the cluster does not answer. The controller keeps its target and tries again.
        """
        ...

    def converge(self, target: Target) -> None:
        """Take the next steps towards `target` and return, without waiting for them.

        Idempotent: with nothing left to do it does nothing. What cannot be done is no exception here but shows in
        `observe`, as a failed node or a pool's reason.

        Raises:
            StateError: the cluster does not answer.
        """
        ...
