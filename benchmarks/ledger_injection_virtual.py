"""Known losses in a replay on simulated accelerators, in virtual time: the router's policy, the engines' scheduler
and the ledger are the real ones, and what each injection takes away is known exactly.

The accelerator is a published one (MI300X, Llama 2 70B) with fewer slots, so that a fifth of a full step is its
fixed part, and short answers, so that what is in progress at a window's two ends weighs little. Its yardstick is
taken as `nfold baseline` takes it: one accelerator under loads from one request to saturation, a curve fitted to
what its steps add up to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np
from nfold.cluster.ledger import ModelCounters, Presence, Yardstick, fit_curve, spans, yardstick_of
from nfold.cluster.recording import Recording, generated
from nfold.cluster.replay import FleetReplica, replay
from nfold.cluster.replay_policies import FleetView, earliest_finish
from nfold.models.engine.simulated.faults import LoseSlots, Slow
from nfold.models.engine.simulated.lengths import OPENORCA, Lengths
from nfold.models.engine.simulated.profile import StepTimeProfile, load_profile
from numpy.typing import NDArray

PROFILE = "MI300X--llama-2-70b"
SCENARIO = "offline"
# Of eight replicas that stand side by side, those that an injection hits.
SLOW, HALF_SLOTS, SMALL_KV, STARTS, STARVED = 0, 1, 2, 3, (4, 5)
SMALL_KV_SHARE = 0.55
START_S = 30.0
OFFERED = 0.6
# Requests/s that saturate one replica, with room to spare.
_SATURATING_REQUESTS_PER_S = 40


@dataclass(frozen=True, slots=True)
class Setup:
    """What all runs that are compared have in common, in virtual seconds.

    Attributes:
        begin_s, end_s: between which the ledger is kept.
        num_slots: of an accelerator, instead of 2,048.
        mean_answer: tokens.
        delay_s: that `delay` adds to each hand-over.
        saturated_s: of the yardstick: in less, one accelerator's prompts are by chance longer or shorter, and its
            rate with them.
    """

    begin_s: float
    end_s: float
    num_slots: int = 512
    mean_answer: int = 100
    delay_s: float = 6.0
    saturated_s: float = 1200.0

    @property
    def die_s(self) -> float:
        return (self.begin_s + self.end_s) / 2


@dataclass(frozen=True, slots=True)
class Fleet:
    """The accelerators of a run, eight to a node; of fewer than 16, four."""

    num: int

    @property
    def per_node(self) -> int:
        return 8 if self.num >= 16 else 4

    def node_of(self, replica: int) -> int:
        return replica // self.per_node

    @property
    def last_node(self) -> int:
        return self.node_of(self.num - 1)


@cache
def profile(setup: Setup) -> StepTimeProfile:
    published = load_profile(PROFILE)
    scenario = published.scenario(SCENARIO)
    limits = replace(scenario.limits, max_num_seqs=setup.num_slots)
    return replace(published, scenarios={SCENARIO: replace(scenario, limits=limits)})


def lengths(setup: Setup) -> Lengths:
    return Lengths(OPENORCA.prompt, OPENORCA.answer.with_mean(setup.mean_answer))


@cache
def yardstick(setup: Setup) -> Yardstick:
    """One accelerator's, from loads of 1, 4, 16, ... requests and from saturation."""
    begin_s, end_s = setup.begin_s, setup.begin_s + setup.saturated_s
    recording = generated(lengths(setup), int(end_s * _SATURATING_REQUESTS_PER_S), None, seed=1)
    seen = []
    for load in (1, 4, 16, 64, 256, None):
        one = FleetReplica(profile(setup), SCENARIO, max_in_flight=load)
        stop_s = end_s if load is None else 30.0
        samples = replay(recording, [one], earliest_finish, stop_s=stop_s).samples
        window = [sample for sample in samples if sample.time_s >= (begin_s if load is None else 5.0)]
        seen.append(window)
    curve = fit_curve([span.steps for window in seen for span in spans(window)])
    assert curve is not None, "there were steps"
    saturated: list[ModelCounters] = seen[-1]
    in_flight = float(np.mean([sample.num_in_flight - sample.num_queued for sample in saturated]))
    return yardstick_of(spans(saturated), in_flight, curve)


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a run.

    Attributes:
        samples: of the window.
        num_tokens: generated in it.
    """

    samples: tuple[ModelCounters, ...]
    num_tokens: int

    @property
    def window_s(self) -> float:
        return self.samples[-1].time_s - self.samples[0].time_s


def run(injections: Sequence[str], num: int, setup: Setup, seed: int = 0) -> Run:
    """With these injections, by the names of `ledger_injection.INJECTIONS`."""
    fleet = Fleet(num)
    replicas = [_replica(index, injections, fleet, setup) for index in range(num)]
    if "no_demand" in injections:
        requests_per_s = OFFERED * num * yardstick(setup).tokens_per_s / setup.mean_answer
        recording = generated(lengths(setup), int(requests_per_s * setup.end_s), requests_per_s, seed)
    else:
        recording = _backlog(num, setup, seed)
    policy = _overlooks_some if "starved_pool" in injections else earliest_finish
    samples = replay(recording, replicas, policy, stop_s=setup.end_s).samples
    kept = tuple(sample for sample in samples if sample.time_s >= setup.begin_s)
    return Run(kept, _tokens(kept[-1]) - _tokens(kept[0]))


@cache
def _backlog(num: int, setup: Setup, seed: int) -> Recording:
    return generated(lengths(setup), int(num * setup.end_s * _SATURATING_REQUESTS_PER_S), None, seed)


def _tokens(sample: ModelCounters) -> int:
    return sum(replica.output_tokens for replica in sample.replicas)


def _replica(index: int, injections: Sequence[str], fleet: Fleet, setup: Setup) -> FleetReplica:
    one = FleetReplica(
        profile(setup), SCENARIO, node=f"node-{fleet.node_of(index)}", yardstick=PROFILE, max_in_flight=None
    )
    place = index % 8
    if place == SLOW:
        percents = [percent for name, percent in (("slow_5", 5.0), ("slow_20", 20.0)) if name in injections]
        one = replace(one, faults=tuple(Slow(percent) for percent in percents))
    if place == HALF_SLOTS and "half_slots" in injections:
        one = replace(one, faults=(LoseSlots(0.5),))
    if place == SMALL_KV and "small_kv" in injections:
        held = setup.num_slots * (OPENORCA.prompt.mean + setup.mean_answer)
        one = replace(one, profile=replace(profile(setup), kv_capacity_tokens=int(SMALL_KV_SHARE * held)))
    if place == STARTS and "start_up" in injections:
        one = replace(one, from_s=setup.begin_s + START_S)
    if "dead_node" in injections and fleet.node_of(index) == fleet.last_node:
        one = replace(one, until_s=setup.die_s)
    if "delay" in injections:
        one = replace(one, delay_s=setup.delay_s)
    return one


def _overlooks_some(
    view: FleetView, prompt_lens: NDArray[np.int32], expected: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A router that gives some replicas nothing."""
    room = view.room.copy()
    room[np.isin(np.arange(len(room)) % 8, STARVED)] = 0
    if not (room > 0).any():
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return earliest_finish(replace(view, room=room), prompt_lens, expected)


def oracle(injections: Sequence[str], num: int, setup: Setup, found: Run) -> dict[str, float]:
    """Tokens lost for reasons whose size the injection itself says: seconds out of service, or without any work
    while there is some, at the baseline's rate; seconds that a fault added to steps; tokens computed twice at the
    profile's price."""
    rate = yardstick(setup).tokens_per_s
    lost: dict[str, float] = dict.fromkeys(("unhealthy", "starting", "starved", "slow step", "recompute"), 0.0)
    first, last = found.samples[0], found.samples[-1]
    for index in range(num):
        old, new = first.replicas[index].steps, last.replicas[index].steps
        for name, percent in (("slow_5", 5.0), ("slow_20", 20.0)):
            if name in injections and index % 8 == SLOW:
                lost["slow step"] += rate * (new.step_s - old.step_s) * percent / (100.0 + percent)
        again = new.num_recomputed_tokens - old.num_recomputed_tokens
        lost["recompute"] += rate * again * profile(setup).curve.prefill_token_s
    for before, after in pairwise(found.samples):
        stretch_s = after.time_s - before.time_s
        for index, replica in enumerate(after.replicas):
            if replica.presence is Presence.DEAD:
                lost["unhealthy"] += rate * stretch_s
            elif "starved_pool" in injections and "no_demand" not in injections and index % 8 in STARVED:
                lost["starved"] += rate * stretch_s
    if "start_up" in injections:
        lost["starting"] = rate * START_S * sum(index % 8 == STARTS for index in range(num))
    return lost


def on_the_way_share(num: int, setup: Setup, found: Run) -> float:
    """By Little's law: as many requests as come, each on its way for the delay, over the slots that are empty."""
    saturation = yardstick(setup).saturation
    assert saturation is not None, "there were steps"
    first, last = found.samples[0].replicas, found.samples[-1].replicas
    pairs = list(zip(first, last, strict=True))
    decode_s = sum(new.steps.decode_s - old.steps.decode_s for old, new in pairs)
    num_empty = num * saturation.batch - decode_s / found.window_s
    num_on_the_way = found.num_tokens / setup.mean_answer / found.window_s * setup.delay_s
    return min(1.0, num_on_the_way / num_empty)
