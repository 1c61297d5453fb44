"""A fleet in virtual time whose work is a fluid: tokens flow in, wait, and are served at what its nodes bring.

Nodes take their time to come and their replicas to load; both can fail. It is what a controller observes and acts
on, for tests that need a whole day in a second.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nfold.cluster.controller.actuation import (
    Actual,
    ActualNode,
    ActualPool,
    NodeState,
    NodeType,
    Target,
)
from nfold.cluster.controller.snapshot import Load, NodeOutput, Offer, Snapshot, StepTime, Window

MODEL = "llama"
WINDOW_S = 30.0


@dataclass(frozen=True)
class Kind:
    """A type of node, and how its nodes turn out."""

    name: str = "mi355x"
    tokens_per_s: float | None = 1000.0
    provision_s: float = 300.0
    load_s: float = 120.0
    max_nodes: int = 20
    misfit: str = ""
    step_times: tuple[StepTime, ...] = ()
    first_token_s: float | None = None

    @property
    def node_type(self) -> NodeType:
        return NodeType(
            name=self.name,
            resources={"GPU": 8.0},
            accelerator=self.name,
            num_accelerators=8,
            max_nodes=self.max_nodes,
        )

    @property
    def pool(self) -> str:
        return f"{MODEL}--{self.name}"

    @property
    def offer(self) -> Offer:
        return Offer(
            node_type=self.name,
            pool=self.pool,
            num_replicas=0 if self.misfit else 8,
            misfit=self.misfit,
            tokens_per_s=self.tokens_per_s,
            num_engines=8,
            full_batch=self.step_times[-1].batch if self.step_times else 1.0,
            step_times=self.step_times,
            first_token_s=self.first_token_s,
        )


@dataclass
class _Node:
    node_id: str
    kind: Kind
    asked_s: float
    fails: str = ""
    leaves_s: float | None = None
    dead_s: float | None = None


@dataclass
class FluidFleet:
    """`asked_for(t)` tokens/s of work at time `t`; times begin at `time_s`.

    Attributes:
        efficiency: of so many nodes at saturation.
        fails: (node type, how many of it were asked for before) -> why this one does not come, or nothing.
        loads: whether replicas come up on nodes.
        ttft_s: what counts as within the SLO.
        max_waiting_s: more work than takes so long is refused.
    """

    kinds: Sequence[Kind]
    asked_for: Callable[[float], float]
    efficiency: Callable[[int], float] = lambda num_nodes: 1.0
    fails: Callable[[str, int], str] = lambda kind, number: ""
    loads: bool = True
    ttft_s: float = 2.0
    max_waiting_s: float = 120.0
    drain_s: float = 30.0
    time_s: float = 1_000_000.0
    step_s: float = 1.0
    queued_tokens: float = 0.0
    refused_tokens: float = 0.0
    served_tokens: float = 0.0
    node_seconds: float = 0.0
    wanted: dict[str, int] = field(default_factory=dict[str, int])
    leaving: set[str] = field(default_factory=set[str])
    applied: list[Target] = field(default_factory=list[Target])
    _nodes: list[_Node] = field(default_factory=list[_Node])
    _asked: dict[str, int] = field(default_factory=dict[str, int])
    _recent: list[tuple[float, float, float]] = field(default_factory=list[tuple[float, float, float]])

    def start_with(self, kind: str, count: int) -> "FluidFleet":
        """So many nodes serve already."""
        self.wanted[kind] = count
        for _ in range(count):
            self._ask(self._kind(kind), self.time_s - 10_000.0)
        return self

    def lose(self, node_id: str) -> None:
        next(node for node in self._nodes if node.node_id == node_id).dead_s = self.time_s

    @property
    def serving(self) -> Mapping[str, int]:
        """Nodes that serve, by type."""
        counts: dict[str, int] = {}
        for node in self._nodes:
            if self._serves(node):
                counts[node.kind.name] = counts.get(node.kind.name, 0) + 1
        return counts

    @property
    def capacity(self) -> float:
        nodes = [node for node in self._nodes if self._serves(node)]
        return sum(node.kind.tokens_per_s or 0.0 for node in nodes) * self.efficiency(len(nodes))

    def advance(self, seconds: float) -> None:
        """Let time pass, in steps of `step_s`."""
        end_s = self.time_s + seconds
        while self.time_s < end_s:
            step_s = min(self.step_s, end_s - self.time_s)
            came, capacity = self.asked_for(self.time_s) * step_s, self.capacity
            served = min(self.queued_tokens + came, capacity * step_s)
            self.queued_tokens += came - served
            room = self.max_waiting_s * max(capacity, 1000.0)
            self.refused_tokens += max(0.0, self.queued_tokens - room)
            self.queued_tokens = min(self.queued_tokens, room)
            self.served_tokens += served
            self.time_s += step_s
            self.node_seconds += step_s * sum(node.dead_s is None for node in self._nodes)
            waits_s = self.queued_tokens / capacity if capacity else self.max_waiting_s
            self._recent = [one for one in self._recent if one[0] > self.time_s - WINDOW_S]
            self._recent.append((self.time_s, served / step_s, waits_s))
        self._nodes = [node for node in self._nodes if node.leaves_s is None or self.time_s < node.leaves_s]

    def observe(self) -> Actual:
        pools = [self._pool(kind) for kind in self.kinds]
        return Actual(
            time_s=self.time_s,
            node_types=tuple(kind.node_type for kind in self.kinds),
            nodes=tuple(self._node(node) for node in self._nodes),
            pools=tuple(pools),
        )

    def converge(self, target: Target) -> None:
        self.applied.append(target)
        self.wanted = dict(target.nodes)
        self.leaving |= set(target.leaving)
        for node in self._nodes:
            if node.node_id in target.leaving and node.leaves_s is None:
                node.leaves_s = self.time_s + self.drain_s
        for kind in self.kinds:
            there = [node for node in self._nodes if node.kind == kind and self._counts(node)]
            for _ in range(target.nodes.get(kind.name, 0) - len(there)):
                self._ask(kind, self.time_s)
            for node in there[target.nodes.get(kind.name, 0) :]:
                node.leaves_s = self.time_s + self.drain_s

    def snapshot(self) -> Snapshot:
        """What the controller's own observer would make of it."""
        return Snapshot(
            time_s=self.time_s,
            actual=self.observe(),
            loads=(self._load(),),
            offers={MODEL: tuple(kind.offer for kind in self.kinds)},
        )

    def _load(self) -> Load:
        served = sum(rate for _, rate, _ in self._recent) / max(1, len(self._recent))
        serving = [node for node in self._nodes if self._serves(node)]
        baseline = sum(node.kind.tokens_per_s or 0.0 for node in serving)
        within = [waits_s <= self.ttft_s for _, _, waits_s in self._recent]
        share = self.efficiency(len(serving))
        window = None
        if baseline and self._recent:
            lost = baseline * (1.0 - share)
            losses = {"control plane": lost, "no demand": baseline - lost - served}
            window = Window(
                window_s=WINDOW_S,
                baseline=baseline,
                measured=served,
                losses=losses,
                saturated=served > 0.99 * baseline * share,
            )
        return Load(
            model=MODEL,
            num_queued=round(self.queued_tokens / 250),
            queued_tokens=self.queued_tokens,
            arriving_tokens_per_s=self.asked_for(self.time_s),
            ttft_attained=sum(within) / len(within) if within else None,
            window=window,
            nodes=tuple(
                NodeOutput(
                    node_id=node.node_id,
                    node_type=node.kind.name,
                    baseline=node.kind.tokens_per_s or 0.0,
                    measured=(node.kind.tokens_per_s or 0.0) / baseline * served if baseline else 0.0,
                )
                for node in serving
            ),
        )

    def _ask(self, kind: Kind, asked_s: float) -> None:
        number = self._asked[kind.name] = self._asked.get(kind.name, 0) + 1
        fails = self.fails(kind.name, number - 1)
        self._nodes.append(_Node(f"{kind.name}-{number}", kind, asked_s, fails))

    def _kind(self, name: str) -> Kind:
        return next(kind for kind in self.kinds if kind.name == name)

    def _state(self, node: _Node) -> NodeState:
        if node.dead_s is not None or (node.fails and self.time_s >= node.asked_s + 60.0):
            return NodeState.FAILED
        if node.leaves_s is not None:
            return NodeState.DRAINING
        if self.time_s < node.asked_s + node.kind.provision_s:
            return NodeState.REQUESTED
        return NodeState.READY

    def _counts(self, node: _Node) -> bool:
        return self._state(node) in (NodeState.REQUESTED, NodeState.READY)

    def _serves(self, node: _Node) -> bool:
        served_s = node.asked_s + node.kind.provision_s + node.kind.load_s
        return self.loads and self._state(node) is NodeState.READY and self.time_s >= served_s

    def _node(self, node: _Node) -> ActualNode:
        state = self._state(node)
        since_s = node.asked_s + node.kind.provision_s if state is NodeState.READY else node.asked_s
        return ActualNode(
            node_id=node.node_id,
            node_type=node.kind.name,
            state=state,
            since_s=since_s,
            reason=(node.fails or "died") if state is NodeState.FAILED else "",
            num_accelerators=8,
        )

    def _pool(self, kind: Kind) -> ActualPool:
        ready = [node for node in self._nodes if node.kind == kind and self._state(node) is NodeState.READY]
        running = sum(self._serves(node) for node in ready)
        draining = sum(node.kind == kind and node.leaves_s is not None for node in self._nodes)
        return ActualPool(
            pool=kind.pool,
            wanted=8 * self.wanted.get(kind.name, 0),
            starting=8 * (len(ready) - running),
            running=8 * running,
            draining=8 * draining,
            reason="" if self.loads else "no node has room",
        )


def with_load(snapshot: Snapshot, **changes: object) -> Snapshot:
    """The same with another load."""
    return replace(snapshot, loads=tuple(replace(load, **changes) for load in snapshot.loads))  # pyright: ignore[reportArgumentType]
