"""The policy over time, on a fleet in virtual time: what it adds and gives back, when, and what it says."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby

import pytest
from fluid_fleet import MODEL, FluidFleet, Kind, with_load
from nfold.cluster.controller.decision import Action, Cause, Decision, Verdict
from nfold.cluster.controller.policy import decide
from nfold.cluster.controller.settings import (
    ControllerSettings,
    PriceSettings,
    ScalingSettings,
    SloSettings,
)
from nfold.cluster.controller.snapshot import Memory, StepTime

TICK_S = 5.0
HOUR_S = 3600.0
FLAP_S = 600.0


@dataclass
class Run:
    """What the controller did with a fleet."""

    fleet: FluidFleet
    scaling: ScalingSettings = field(default_factory=ScalingSettings)
    prices: Mapping[str, float] = field(default_factory=dict[str, float])
    memory: Memory = field(default_factory=Memory)
    tick_s: float = TICK_S
    decisions: list[Decision] = field(default_factory=list[Decision])

    def go(self, seconds: float) -> "Run":
        settings = ControllerSettings(
            models={MODEL: self.scaling}, prices=PriceSettings(node_hour=dict(self.prices))
        )
        for _ in range(round(seconds / self.tick_s)):
            decision, self.memory = decide(self.fleet.snapshot(), settings, self.memory)
            self.decisions.append(decision)
            self.fleet.converge(decision.target)
            self.fleet.advance(self.tick_s)
        return self

    @property
    def verdicts(self) -> list[Verdict]:
        return [decision.verdicts[0] for decision in self.decisions]

    @property
    def last(self) -> Verdict:
        return self.verdicts[-1]

    def changes(self, action: Action | None = None) -> list[tuple[float, Verdict]]:
        """With the seconds since the start."""
        start_s = self.decisions[0].time_s
        return [
            (decision.time_s - start_s, decision.verdicts[0])
            for decision in self.decisions
            if decision.verdicts[0].action is (action or decision.verdicts[0].action)
            and decision.verdicts[0].action is not Action.HOLD
        ]

    @property
    def directions(self) -> list[Action]:
        """Actions in turn, equal ones after each other as one."""
        return [action for action, _ in groupby(verdict.action for _, verdict in self.changes())]

    @property
    def num_flaps(self) -> int:
        """Changes of direction within ten minutes."""
        pairs = zip(self.changes(), self.changes()[1:], strict=False)
        return sum(one.action is not other.action and later_s - s < FLAP_S for (s, one), (later_s, other) in pairs)


def steady(rate: float) -> Callable[[float], float]:
    return lambda time_s: rate


def after(seconds: float, rate: float, before: float = 0.0) -> Callable[[float], float]:
    return lambda time_s: rate if time_s >= 1_000_000.0 + seconds else before


def test_cold_start_brings_what_the_work_takes_at_once() -> None:
    """From no node: 2,500 tokens/s at 85 % of 1,000 each are three nodes, asked for in the first decision."""
    run = Run(FluidFleet([Kind()], steady(2500.0), max_waiting_s=HOUR_S), ScalingSettings(min_nodes=0)).go(1800.0)

    (time_s, first) = run.changes()[0]
    assert (time_s, first.cause, first.after) == (0.0, Cause.WORK, {"mi355x": 3})
    assert first.done_at_s == run.decisions[0].time_s + 420.0
    assert run.fleet.serving["mi355x"] >= 3
    assert run.fleet.queued_tokens == 0.0  # more were added for what waited meanwhile
    assert run.num_flaps == 0


def test_a_cold_start_without_a_baseline_adds_one_node_and_says_why_no_more() -> None:
    kind = Kind(tokens_per_s=None)
    run = Run(FluidFleet([kind], steady(2500.0)), ScalingSettings(min_nodes=0)).go(60.0)

    assert [verdict.after for _, verdict in run.changes()] == [{"mi355x": 1}]
    assert run.last.cause is Cause.NO_BASELINE
    assert "nfold baseline" in run.last.reason


def test_a_burst_that_ends_before_a_node_could_come_adds_none() -> None:
    """100,000 tokens wait, two nodes have 800 tokens/s to spare: 125 s, and a node needs 420. The SLO is missed
    meanwhile, which a third node would not change."""
    fleet = FluidFleet([Kind()], steady(1200.0), queued_tokens=100_000.0).start_with("mi355x", 2)
    run = Run(fleet, ScalingSettings(slo=SloSettings(ttft_s=2.0))).go(300.0)

    assert run.changes() == []
    assert any("before another node could serve" in verdict.reason for verdict in run.verdicts)
    assert fleet.refused_tokens == fleet.queued_tokens == 0.0


def test_a_burst_that_stays_is_followed_once_and_given_back_once() -> None:
    """An hour of thrice the work: up in one go, down after the idle time, and no flap."""

    def asked_for(time_s: float) -> float:
        return 4500.0 if HOUR_S <= time_s - 1_000_000.0 < 2 * HOUR_S else 1500.0

    fleet = FluidFleet([Kind()], asked_for, max_waiting_s=HOUR_S).start_with("mi355x", 2)
    run = Run(fleet).go(4 * HOUR_S)

    first_s, first = run.changes(Action.ADD)[0]
    assert first_s <= HOUR_S + TICK_S
    assert sum(first.after.values()) >= 6
    assert run.directions == [Action.ADD, Action.REMOVE]
    assert run.last.after == {"mi355x": 3}  # 1,500 at 70 % at most
    assert run.num_flaps == 0


def test_a_slow_ramp_is_met_ahead_of_need() -> None:
    """1,000 to 8,000 tokens/s in two hours: nodes serve before the work comes, and nobody ever waits long."""

    def asked_for(time_s: float) -> float:
        return 1000.0 + 7000.0 * min(1.0, (time_s - 1_000_000.0) / (2 * HOUR_S))

    fleet = FluidFleet([Kind()], asked_for).start_with("mi355x", 2)
    run = Run(fleet)
    worst_s = 0.0
    for _ in range(90):
        run.go(100.0)
        worst_s = max(worst_s, fleet.queued_tokens / fleet.capacity)

    assert worst_s == 0.0
    assert run.changes(Action.REMOVE) == []
    assert fleet.serving["mi355x"] == pytest.approx(8000 / 850, abs=1)


def daily(time_s: float) -> float:
    """Between 800 and 7,200 tokens/s, lowest at midnight, with a noise of 10 %."""
    hours = (time_s - 1_000_000.0) / HOUR_S
    noise = 0.1 * math.sin(time_s * 12.9898) * math.cos(time_s * 78.233)
    return (4000.0 - 3200.0 * math.cos(2 * math.pi * hours / 24.0)) * (1 + noise)


def test_a_day_without_a_refused_token_or_a_flap() -> None:
    """Start-up takes 7 minutes. Nodes follow the work; a fixed fleet for the peak would cost half as much again."""
    fleet = FluidFleet([Kind()], daily, step_s=5.0).start_with("mi355x", 2)
    run = Run(fleet, tick_s=20.0).go(24 * HOUR_S)

    assert fleet.refused_tokens == 0.0
    assert fleet.queued_tokens == 0.0
    assert run.num_flaps == 0
    first_down = run.changes(Action.REMOVE)[0][0]
    assert first_down > 12 * HOUR_S  # up till noon, down from then on
    assert all(s < 13 * HOUR_S for s, _ in run.changes(Action.ADD))
    peak = max(sum(verdict.after.values()) for verdict in run.verdicts)
    assert fleet.node_seconds < peak * 24 * HOUR_S / 1.5


def test_a_node_lost_while_others_come_is_asked_for_anew() -> None:
    fleet = FluidFleet([Kind()], steady(3200.0), max_waiting_s=HOUR_S).start_with("mi355x", 2)
    run = Run(fleet).go(60.0)
    assert run.last.after == {"mi355x": 4}
    fleet.lose("mi355x-1")
    fleet.lose("mi355x-3")
    run.go(900.0)

    assert fleet.serving["mi355x"] >= 4
    assert all(verdict.action is Action.ADD for _, verdict in run.changes())
    assert [failure.node_id for failure in run.memory.failures] == ["mi355x-1", "mi355x-3"]


def test_a_type_whose_nodes_do_not_come_is_left_for_another() -> None:
    """Three fail, then the other type is taken; what failed is told in the reason."""
    old = Kind("mi300x", tokens_per_s=500.0)
    fleet = FluidFleet(
        [Kind(), old], steady(1500.0), fails=lambda kind, number: "quota" if kind == "mi355x" else ""
    ).start_with("mi300x", 1)
    run = Run(fleet).go(1800.0)

    assert fleet.serving["mi300x"] >= 4
    reasons = " ".join(verdict.reason for _, verdict in run.changes(Action.ADD))
    assert "nodes of mi355x failed, the last: quota" in reasons
    assert "mi355x" not in run.last.after


def test_nothing_is_bought_for_a_pool_that_fits_on_no_node() -> None:
    fleet = FluidFleet([Kind(misfit="a replica needs GPU 16 on one node, mi355x has 8")], steady(2000.0))
    run = Run(fleet).go(60.0)

    assert run.changes() == []
    assert run.last.cause is Cause.UNPLACEABLE
    assert "needs GPU 16 on one node" in run.last.reason


def test_replicas_that_never_start_bring_no_further_nodes() -> None:
    """Serve's own words are told."""
    fleet = FluidFleet([Kind()], steady(2000.0), loads=False, max_waiting_s=HOUR_S)
    run = Run(fleet, ScalingSettings(min_nodes=1, max_nodes=50)).go(2.5 * HOUR_S)

    assert run.last.cause is Cause.UNPLACEABLE
    assert "no node has room" in run.last.reason
    assert run.changes()[-1][0] < 1500.0


@pytest.mark.parametrize(("num_in_flight", "kept"), [(1500, 1), (2000, 2)])
def test_nodes_stay_while_what_runs_there_would_not_fit_on_fewer(num_in_flight: int, kept: int) -> None:
    """Clients that wait for answers ask for next to nothing; one node takes 8 times 200 requests."""
    kind = Kind(step_times=(StepTime(batch=1.0, step_s=0.02), StepTime(batch=200.0, step_s=0.05)))
    fleet, memory = FluidFleet([kind], steady(100.0)).start_with("mi355x", 2), Memory()
    settings = ControllerSettings(models={MODEL: ScalingSettings()})
    for _ in range(240):
        snapshot = with_load(fleet.snapshot(), num_in_flight=num_in_flight)
        decision, memory = decide(snapshot, settings, memory)
        fleet.converge(decision.target)
        fleet.advance(5.0)
    assert decision.target.nodes == {"mi355x": kept}
    assert ("too many for 1 mi355x" in decision.verdicts[0].reason) is (kept == 2)


@pytest.mark.parametrize(
    ("prices", "chosen"),
    [
        ({}, "mi355x"),  # the fewest nodes
        ({"mi355x": 24.0, "mi300x": 6.0}, "mi300x"),  # 24 against 18 for what 2,400 tokens/s take
        ({"mi355x": 24.0, "mi300x": 11.0}, "mi355x"),
    ],
)
def test_prices_decide_the_generation(prices: dict[str, float], chosen: str) -> None:
    kinds = [Kind("mi355x", 3000.0), Kind("mi300x", 1000.0)]
    run = Run(FluidFleet(kinds, steady(2400.0)), ScalingSettings(min_nodes=0), prices).go(5.0)

    assert list(run.last.after) == [chosen]
    assert run.last.prediction is not None
    assert run.last.prediction.capacity == 3000.0


def test_the_costliest_tokens_are_given_back_first() -> None:
    kinds = [Kind("mi355x", 3000.0), Kind("mi300x", 1000.0)]
    fleet = FluidFleet(kinds, steady(2000.0)).start_with("mi355x", 1).start_with("mi300x", 2)
    run = Run(fleet, prices={"mi355x": 24.0, "mi300x": 12.0}).go(1200.0)

    assert run.last.after == {"mi355x": 1}


CURVE = (StepTime(batch=1.0, step_s=0.03), StepTime(batch=100.0, step_s=0.06))


def test_an_slo_that_no_count_can_meet_stops_scaling_and_says_so() -> None:
    kind = Kind(step_times=CURVE)
    scaling = ScalingSettings(min_nodes=0, slo=SloSettings(tpot_s=0.02))
    run = Run(FluidFleet([kind], steady(5000.0)), scaling).go(600.0)

    assert run.changes() == []
    assert run.last.cause is Cause.SLO_UNREACHABLE
    assert "0.03 s per token" in run.last.reason
    assert "0.02 s are promised" in run.last.reason

    first = Run(FluidFleet([Kind(first_token_s=3.0)], steady(5000.0)), ScalingSettings(slo=SloSettings(ttft_s=2.0)))
    assert "needs 3 s for a first token" in first.go(5.0).last.reason


def test_a_tighter_slo_takes_more_nodes() -> None:
    """Steps of 0.045 s allow half the batch: two thirds of the tokens/s at saturation."""
    fleets = [FluidFleet([Kind(step_times=CURVE)], steady(4000.0)) for _ in range(2)]
    loose = Run(fleets[0], ScalingSettings(min_nodes=0)).go(5.0)
    tight = Run(fleets[1], ScalingSettings(min_nodes=0, slo=SloSettings(tpot_s=0.045))).go(5.0)

    assert sum(loose.last.after.values()) == 5
    assert sum(tight.last.after.values()) == 7


def test_an_slo_that_nodes_do_not_help_ends_the_tries() -> None:
    """Something else makes clients wait: after two nodes without effect no third is tried."""
    fleet = FluidFleet([Kind()], steady(1500.0), ttft_s=-1.0).start_with("mi355x", 2)
    run = Run(fleet, ScalingSettings(slo=SloSettings(ttft_s=2.0))).go(2 * HOUR_S)

    assert [verdict.cause for _, verdict in run.changes()] == [Cause.SLO, Cause.SLO]
    assert run.last.cause is Cause.SLO_UNREACHABLE
    assert "more nodes do not help" in run.last.reason


def test_adding_stops_at_the_floor_and_names_the_column() -> None:
    """A control plane that saturates: each node more takes from all others."""
    fleet = FluidFleet(
        [Kind()], steady(50_000.0), efficiency=lambda n: 1.0 - 0.05 * n, max_waiting_s=HOUR_S
    ).start_with("mi355x", 2)
    run = Run(fleet, ScalingSettings(min_marginal_efficiency=0.3, max_nodes=4)).go(HOUR_S)
    run.scaling = ScalingSettings(min_marginal_efficiency=0.3, max_nodes=20)
    run.go(4 * HOUR_S)

    assert run.last.cause is Cause.FLOOR
    assert run.last.eaten_by == "control plane"
    assert sum(run.last.after.values()) < 12


def test_a_full_kv_cache_makes_nodes_bring_less() -> None:
    """Contexts are twice as long as in the baseline: two nodes do half of what they should, and requests wait."""
    fleet = FluidFleet([Kind()], steady(1200.0), efficiency=lambda n: 0.5).start_with("mi355x", 2)
    fleet.advance(60.0)
    settings = ControllerSettings(models={MODEL: ScalingSettings()})
    roomy, full = (with_load(fleet.snapshot(), kv_use=kv_use) for kv_use in (0.5, 0.99))

    (few,), (many,) = (decide(one, settings, Memory())[0].verdicts for one in (roomy, full))
    assert sum(many.after.values()) > sum(few.after.values())


def test_a_queue_that_is_too_old_is_a_missed_slo() -> None:
    fleet = FluidFleet([Kind()], steady(1500.0)).start_with("mi355x", 2)
    fleet.advance(60.0)
    snapshot = with_load(fleet.snapshot(), ttft_attained=None, queue_age_s=5.0)
    settings = ControllerSettings(models={MODEL: ScalingSettings(slo=SloSettings(ttft_s=2.0))})

    (verdict,) = decide(snapshot, settings, Memory())[0].verdicts
    assert "0.0% of requests are within the SLO" in verdict.reason


def test_a_little_more_work_than_nodes_is_not_worth_a_node() -> None:
    run = Run(FluidFleet([Kind()], steady(1800.0)).start_with("mi355x", 2)).go(60.0)

    assert run.last.cause is Cause.FLOOR
    assert run.last.eaten_by == "no demand"
    assert run.changes() == []


def test_nothing_is_given_back_when_nobody_looked() -> None:
    """The controller was away for most of the idle time: what was asked for then is not known."""
    fleet = FluidFleet([Kind()], steady(500.0)).start_with("mi355x", 3)
    run = Run(fleet).go(300.0)
    fleet.advance(900.0)
    run.go(10.0)
    assert run.changes() == []
    assert "nobody looked for" in run.last.reason

    run.go(800.0)
    assert run.last.after == {"mi355x": 1}


def test_load_that_comes_back_makes_it_patient() -> None:
    """Bursts every 40 minutes: at first nodes are given back between them, from the third on they are kept."""

    def asked_for(time_s: float) -> float:
        return 3500.0 if (time_s - 1_000_000.0) % 2400.0 < 900.0 else 800.0

    run = Run(FluidFleet([Kind()], asked_for, max_waiting_s=HOUR_S).start_with("mi355x", 2)).go(5 * HOUR_S)

    assert run.num_flaps <= 1  # nothing foretold the third burst
    assert run.memory.models[MODEL].patience == 4.0
    assert run.changes()[-1][0] == 4800.0


def test_start_times_are_learnt() -> None:
    """A node takes 150 s to come and 45 s to load; the settings said 300 and 120."""
    fleet = FluidFleet([Kind(provision_s=150.0, load_s=45.0)], after(600.0, 3000.0, 800.0)).start_with("mi355x", 1)
    run = Run(fleet).go(2400.0)

    assert run.memory.times.provision_s["mi355x"] == pytest.approx(150.0, abs=2 * TICK_S)
    assert run.memory.times.load_s[f"{MODEL}--mi355x"] == pytest.approx(45.0, abs=2 * TICK_S)


def test_a_node_with_broken_accelerators_counts_for_what_works() -> None:
    """Two nodes, one with 6 of 8: 14 replicas, 1,750 tokens/s. 1,900 take a third node, 1,400 do not."""
    for rate, wanted in ((1400.0, 14), (1900.0, 22)):
        fleet = FluidFleet([Kind()], steady(rate)).start_with("mi355x", 2)
        snapshot = fleet.snapshot()
        whole, partial = snapshot.actual.nodes
        nodes = (whole, replace(partial, num_accelerators=6))
        snapshot = replace(snapshot, actual=replace(snapshot.actual, nodes=nodes))
        decision, _ = decide(snapshot, ControllerSettings(models={MODEL: ScalingSettings()}), Memory())

        assert decision.target.replicas == {f"{MODEL}--mi355x": wanted}
        assert decision.verdicts[0].without is not None
        assert decision.verdicts[0].without.baseline == 1750.0


def test_a_cluster_without_an_autoscaler_is_left_as_it_is() -> None:
    fleet = FluidFleet([], steady(5000.0))
    run = Run(fleet).go(5.0)

    assert run.last.cause is Cause.FIXED
    assert run.decisions[-1].target.nodes == run.decisions[-1].target.replicas == {}
