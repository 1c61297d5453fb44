"""A growing fleet of simulated accelerators in virtual time, as a controller sees and changes it.

A replay begins at 0 and is the same as before up to what was decided last, so it is run again after each decision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from nfold.cluster.controller.actuation import (
    Actual,
    ActualNode,
    ActualPool,
    NodeState,
    NodeType,
    Target,
)
from nfold.cluster.controller.snapshot import Load, Memory, NodeOutput, Offer, Snapshot, Window
from nfold.cluster.ledger import Ledger, ModelCounters, StepCurve, Yardstick, books_of, spans, total, yardstick_of
from nfold.cluster.recording import Recording
from nfold.cluster.replay import FleetReplica, replay
from nfold.cluster.replay_policies import earliest_finish
from nfold.models.engine.simulated.profile import StepTimeProfile, load_profile

MODEL = "llama-2-70b"
SCENARIO = "offline"
START_S = 10.0
# After nodes joined, until a window counts: what began together must have drifted apart, for MI325X in 150 s.
SETTLE_S = 150.0
WINDOW_S = 60.0


def profile_of(accelerator: str) -> StepTimeProfile:
    return load_profile(f"{accelerator}--{MODEL}")


def samples_of(recording: Recording, fleet: Sequence[FleetReplica], until_s: float) -> tuple[ModelCounters, ...]:
    """What is told of `fleet` up to a moment."""
    return replay(recording, fleet, earliest_finish, stop_s=until_s).samples


def measure_yardstick(recording: Recording, accelerator: str, num_engines: int) -> Yardstick:
    """The baseline: one flawless node alone at saturation."""
    fleet = [FleetReplica(profile_of(accelerator), SCENARIO) for _ in range(num_engines)]
    samples = samples_of(recording, fleet, SETTLE_S + WINDOW_S)
    curve = profile_of(accelerator).curve
    window = [sample for sample in samples if sample.time_s >= SETTLE_S]
    in_flight = [replica.num_in_flight for sample in window for replica in sample.replicas]
    return yardstick_of(
        spans(window),
        sum(in_flight) / len(in_flight),
        StepCurve.affine(curve.fixed_s, curve.decode_token_s, curve.prefill_token_s, curve.kv_token_s),
    )


@dataclass(frozen=True)
class NodePlan:
    """How one node turns out, which nobody is told before.

    Attributes:
        slowness: of its engines by number, where it is not 1.
        num_broken: engines that do not work.
    """

    accelerator: str = "MI355X"
    slowness: Mapping[int, float] = field(default_factory=dict[int, float])
    num_broken: int = 0
    delay_s: float = 0.0


@dataclass
class GrowingFleet:
    """Nodes of each type turn out as `plans` say, in the order in which they are asked for; the first of all serves
    from the start."""

    recording: Recording
    plans: Sequence[NodePlan]
    yardsticks: Mapping[str, Yardstick]
    engines_per_node: int
    time_s: float = 0.0
    starts_s: dict[int, float] = field(default_factory=lambda: {0: 0.0})
    samples: tuple[ModelCounters, ...] = ()

    @property
    def kinds(self) -> list[str]:
        """Types of node in the order in which they come."""
        return list(dict.fromkeys(plan.accelerator for plan in self.plans))

    def observe(self) -> Actual:
        nodes = [
            ActualNode(
                node_id=f"node-{number}",
                node_type=self.plans[number].accelerator,
                state=NodeState.READY if start_s <= self.time_s else NodeState.STARTING,
                since_s=start_s if start_s <= self.time_s else start_s - START_S,
                num_accelerators=self.engines_per_node - self.plans[number].num_broken,
            )
            for number, start_s in self.starts_s.items()
        ]
        return Actual(
            time_s=self.time_s,
            node_types=tuple(self._node_type(kind) for kind in self.kinds),
            nodes=tuple(nodes),
            pools=tuple(self._pool(kind) for kind in self.kinds),
        )

    def converge(self, target: Target) -> None:
        for kind, count in target.nodes.items():
            mine = [number for number, plan in enumerate(self.plans) if plan.accelerator == kind]
            for number in mine[:count]:
                self.starts_s.setdefault(number, self.time_s + START_S)

    def quarantine(self, replica_ids: Sequence[str]) -> None:
        assert not replica_ids

    def look(self, actual: Actual, memory: Memory) -> Snapshot:
        return Snapshot(
            time_s=self.time_s,
            actual=actual,
            loads=(self._load(),),
            offers={MODEL: tuple(map(self._offer, self.kinds))},
        )

    def run(self, until_s: float) -> None:
        """Serve with the nodes decided on so far; `time_s` stays where it is."""
        fleet = [one for number in self.starts_s for one in self._replicas(number)]
        self.samples = samples_of(self.recording, fleet, until_s)

    def ledgers(self) -> tuple[Ledger | None, dict[str, Ledger]]:
        """Of the latest window: of all, and by node."""
        since_s = self.time_s - WINDOW_S
        window = [sample for sample in self.samples if since_s <= sample.time_s <= self.time_s]
        rows = books_of(window, self.yardsticks).window()
        nodes = {place.node for place in rows}
        by_node = {node: total(ledger for place, ledger in rows.items() if place.node == node) for node in nodes}
        return total(rows.values()), {node: ledger for node, ledger in by_node.items() if ledger}

    def _replicas(self, number: int) -> list[FleetReplica]:
        plan, name = self.plans[number], f"node-{number}"
        whole = FleetReplica(
            profile_of(plan.accelerator),
            SCENARIO,
            delay_s=plan.delay_s,
            from_s=self.starts_s[number],
            until_s=inf,
            node=name,
            yardstick=plan.accelerator,
        )
        count = self.engines_per_node - plan.num_broken
        return [replace(whole, slowness=plan.slowness.get(engine, 1.0)) for engine in range(count)]

    def _load(self) -> Load:
        ledger, by_node = self.ledgers() if self.time_s >= WINDOW_S else (None, {})
        window = ledger and Window(
            window_s=ledger.window_s,
            baseline=ledger.baseline,
            measured=ledger.measured,
            losses=ledger.losses,
            saturated=ledger.saturated,
        )
        nodes = tuple(
            NodeOutput(
                node_id=node,
                node_type=self.plans[int(node.removeprefix("node-"))].accelerator,
                baseline=of_node.baseline,
                measured=of_node.measured,
            )
            for node, of_node in sorted(by_node.items())
        )
        queued = self.recording.num_output_tokens
        return Load(model=MODEL, num_queued=len(self.recording), queued_tokens=queued, window=window, nodes=nodes)

    def _node_type(self, kind: str) -> NodeType:
        return NodeType(
            name=kind,
            resources={},
            accelerator=kind,
            num_accelerators=self.engines_per_node,
            max_nodes=sum(plan.accelerator == kind for plan in self.plans),
        )

    def _offer(self, kind: str) -> Offer:
        return Offer(
            node_type=kind,
            pool=f"{MODEL}--{kind}",
            num_replicas=self.engines_per_node,
            tokens_per_s=self.yardsticks[kind].tokens_per_s * self.engines_per_node,
            num_engines=self.engines_per_node,
            full_batch=self.yardsticks[kind].num_in_flight,
        )

    def _pool(self, kind: str) -> ActualPool:
        mine = [s for number, s in self.starts_s.items() if self.plans[number].accelerator == kind]
        running = sum(start_s <= self.time_s for start_s in mine)
        return ActualPool(
            pool=f"{MODEL}--{kind}",
            wanted=len(mine) * self.engines_per_node,
            starting=(len(mine) - running) * self.engines_per_node,
            running=running * self.engines_per_node,
            draining=0,
        )
